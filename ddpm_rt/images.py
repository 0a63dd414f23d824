"""What `Engine.sample` returns: arrays that know where they came from, and how to write them as PNG or npz.

PNG is written here with zlib alone, so that sampling to a file needs neither Pillow nor its import time.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Self

import numpy as np

from .errors import OptionError


@dataclasses.dataclass(frozen=True)
class Provenance:
    """labels [n] int64 (-1 unconditional), seeds [n] uint64, network evaluations per image, seconds of the call."""

    labels: np.ndarray
    seeds: np.ndarray
    nfe: int
    seconds: float
    fingerprint: str
    bad: tuple[int, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # plan, sampler, steps, scale, precision, ...
    range: tuple[float, float] = (-1.0, 1.0)
    role: str = "image"
    x0: np.ndarray | None = None  # float32 [n, predictions, *shape]

    def select(self, index: Any) -> Provenance:
        x0 = None if self.x0 is None else self.x0[index]
        return dataclasses.replace(self, labels=self.labels[index], seeds=self.seeds[index], x0=x0, bad=())


class _WithProvenance:
    """The attributes that arrays, lists and tensors of images share. Empty where nothing is known of the origin."""

    _provenance: Provenance | None = None

    @property
    def labels(self) -> np.ndarray | None:
        """[n] int64, -1 for unconditional."""
        return self._provenance and self._provenance.labels

    @property
    def seeds(self) -> np.ndarray | None:
        """[n] uint64. The same seed and options give the same bits, alone or in any batch."""
        return self._provenance and self._provenance.seeds

    @property
    def nfe(self) -> int | None:
        """Network evaluations of one image."""
        return self._provenance and self._provenance.nfe

    @property
    def seconds(self) -> float | None:
        """Wall time from submission to completion."""
        return self._provenance and self._provenance.seconds

    @property
    def fingerprint(self) -> str | None:
        """Names what decides the bits: backend, version, precision, instruction set, row and random number versions."""
        return self._provenance and self._provenance.fingerprint

    @property
    def data_range(self) -> tuple[float, float] | None:
        """[low, high] of the model's data, which uint8 maps to 0 and 255."""
        return self._provenance and self._provenance.range

    @property
    def x0(self) -> np.ndarray | None:
        """float32 [n, predictions, *shape]: what x0_every kept of the way, the last prediction last; None without it."""
        return self._provenance and self._provenance.x0

    @property
    def bad(self) -> tuple[int, ...]:
        """Indices of images that are not finite (only with on_error="keep")."""
        return self._provenance.bad if self._provenance else ()


class Images(_WithProvenance, np.ndarray):
    """Samples as an array: uint8 [n, H, W, C], or float32 [n, *shape] in the data's range.

    Slices along the first axis keep `.labels` and `.seeds` in step; results of arithmetic are plain arrays.
    """

    def __new__(cls, array: np.ndarray, provenance: Provenance | None = None) -> Self:
        self = np.asarray(array).view(cls)
        self._provenance = provenance
        return self

    def __array_finalize__(self, source: Any) -> None:
        self._provenance = None

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        first = key[0] if isinstance(key, tuple) and key else key
        if isinstance(part, Images) and self._provenance is not None and first is not Ellipsis and first is not None:
            try:
                part._provenance = self._provenance.select(first)
            except IndexError:  # a mask over several axes
                part._provenance = None
        return part

    def copy(self, order: str = "C") -> Images:
        return Images(np.asarray(self).copy(order), self._provenance)

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> Images:
        return self.copy()

    def __reduce__(self) -> Any:
        return (Images, (np.asarray(self), self._provenance))

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes a PNG grid (.png), or guided-diffusion's npz (.npz: arr_0, and arr_1 the labels), atomically.

        Raises:
            OptionError: for another suffix, for samples that are no images, or if the file cannot be written.
        """
        return save(self, self._provenance, path)

    def _repr_png_(self) -> bytes | None:
        """Notebooks show the grid."""
        if self._provenance is None or self._provenance.role != "image" or self.ndim != 4:
            return None
        return encode_png(grid(to_uint8(np.asarray(self), self._provenance.range)))


class ImageList(_WithProvenance, list):
    """PIL images, with the attributes of `Images`."""

    def __init__(self, images: Any, provenance: Provenance) -> None:
        super().__init__(images)
        self._provenance = provenance

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        return save(np.stack([np.atleast_3d(np.asarray(image)) for image in self]), self._provenance, path)


def to_pil(array: np.ndarray) -> list[Any]:
    """uint8 [n, H, W, 1 | 3 | 4] -> n PIL images."""
    try:
        from PIL import Image
    except ImportError as e:
        raise OptionError('output: expected Pillow to be installed for "pil": pip install "ddpm_rt[cli]"') from e
    check_channels(array.shape[-1])
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in np.asarray(array)]


def to_torch(array: Any, provenance: Provenance) -> Any:
    """float32 [n, *shape], an array or a tensor -> a torch tensor over the same memory, with the attributes of `Images`."""
    try:
        import torch
    except ImportError as e:
        raise OptionError('output: expected PyTorch to be installed for "torch"; "dlpack" needs nothing') from e
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    for field in ("labels", "seeds", "nfe", "seconds", "fingerprint", "bad", "x0"):
        setattr(tensor, field, getattr(provenance, field))
    plain = tensor.detach()  # a tensor that held itself would keep its memory until the garbage collector came
    tensor.save = lambda path: save(plain.cpu().numpy(), provenance, path)
    return tensor


def check_channels(channels: int) -> None:
    if channels not in (1, 3, 4):
        raise OptionError(f"image: expected 1, 3 or 4 channels, got {channels}; take output='float' or save as .npz")


def to_uint8(array: np.ndarray, data_range: tuple[float, float]) -> np.ndarray:
    """float [n, C, H, W] in `data_range` -> uint8 [n, H, W, C], rounded half to even; uint8 passes through."""
    if array.dtype == np.uint8:
        return array
    low, high = data_range
    scaled = (np.nan_to_num(array, nan=low).astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8).transpose(0, 2, 3, 1)


def grid(images: np.ndarray, padding: int = 2) -> np.ndarray:
    """uint8 [n, H, W, C] -> [rows, columns, C]: as square as the divisors of n allow, zeros between the images."""
    n, height, width, channels = images.shape
    root = math.ceil(math.sqrt(n))
    columns = next((c for c in range(root, 2 * root) if n % c == 0), root) if n > 3 else n
    rows = -(-n // columns)
    sheet = np.zeros((rows * (height + padding) + padding, columns * (width + padding) + padding, channels), np.uint8)
    for i, image in enumerate(images):
        y, x = padding + i // columns * (height + padding), padding + i % columns * (width + padding)
        sheet[y : y + height, x : x + width] = image
    return sheet


def encode_png(image: np.ndarray, text: Mapping[str, Any] | None = None) -> bytes:
    """uint8 [H, W, 1 | 3 | 4] -> a PNG file's bytes; `text` becomes tEXt chunks (ISO 15948, sections 11.2 and 11.3.4.3)."""
    height, width, channels = image.shape
    check_channels(channels)
    color_type = {1: 0, 3: 2, 4: 6}[channels]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = np.ascontiguousarray(image).reshape(height, width * channels)
    filtered = np.empty((height, width * channels + 1), np.uint8)
    filtered[:, 0] = 2  # filter "Up": the difference to the line above, mod 256
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))]
    for key, value in (text or {}).items():
        parts.append(chunk(b"tEXt", f"{key}\0{value}".encode("latin-1", "replace")))
    parts += [chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)), chunk(b"IEND", b"")]
    return b"".join(parts)


def png_text(provenance: Provenance | None) -> dict[str, str]:
    """What a PNG says of its origin: plan, sampler, steps, scale, seeds, labels, precision, fingerprint."""
    if provenance is None:
        return {"Software": "ddpm_rt"}
    seeds, labels = np.atleast_1d(provenance.seeds), np.atleast_1d(provenance.labels)
    text = {"Software": "ddpm_rt", **{k: str(v) for k, v in provenance.settings.items()}}
    text["seed"] = str(seeds[0]) if len(seeds) else ""
    text["seeds"] = ",".join(map(str, seeds[:1024]))
    text["labels"] = ",".join(map(str, labels[:1024]))
    text["fingerprint"] = provenance.fingerprint
    return text


def save(array: np.ndarray, provenance: Provenance | None, path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        labels = None if provenance is None else np.atleast_1d(provenance.labels)
        arrays = {"arr_0": np.asarray(array)} if labels is None else {"arr_0": np.asarray(array), "arr_1": labels}
        if provenance is not None and provenance.x0 is not None:
            arrays["x0"] = provenance.x0
        with atomic_file(path) as file:
            np.savez(file, **arrays)
        return path
    if suffix != ".png":
        raise OptionError(f"path: expected a name that ends in .png or .npz, got {str(path)!r}")
    if provenance is not None and provenance.role != "image":
        raise OptionError(f"path: expected .npz for samples whose role is {provenance.role!r}, got {str(path)!r}")
    batch = np.asarray(array)
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim != 4 or len(batch) == 0:
        raise OptionError(f"image: expected one image or a batch of images, got shape {list(batch.shape)}")
    pixels = to_uint8(batch, provenance.range if provenance else (-1.0, 1.0))
    data = encode_png(grid(pixels) if len(pixels) > 1 else pixels[0], png_text(provenance))
    with atomic_file(path) as file:
        file.write(data)
    return path


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only when the block has ended without an error.

    Raises:
        OptionError: the folder is missing or read-only, or the disk is full; nothing is left behind.
    """
    target = pathlib.Path(os.path.realpath(path))  # through a link, so that the link stays
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        if target.exists() and not target.is_file():  # a folder; or a device, which a rename would replace
            raise OSError(errno.EINVAL, "not a regular file")
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, target)
    except OSError as e:
        raise OptionError(f"path: expected a file that can be written, got {str(path)!r}: {e.strerror or e}") from e
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises what `atomic_file` would, before the work whose result it is to hold. Leaves `path` as it is."""
    try:
        with atomic_file(path):
            raise _NotNow
    except _NotNow:
        pass


class _NotNow(Exception):
    pass


def wrapped(out: Any, kind: str, provenance: Provenance) -> Any:
    """The engine's array as what `output=` asked for."""
    if kind == "pil":
        return ImageList(to_pil(out), provenance)
    return to_torch(out, provenance) if kind == "torch" else Images(out, provenance)
