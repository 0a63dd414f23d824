"""The judge: a small CNN trained on the real training digits, which labels samples and whose features carry FID@digits.

It never sees a generated image, nor the 500 held-out digits that its own accuracy is measured on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..training.data import mnist5k

FEATURES, CLASSES, SIZE = 64, 10, 28
EPOCHS, BATCH, PEAK_LR = 25, 100, 4e-3
Progress = Callable[[int, int], None]


class Net(nn.Module):
    """Four 3x3 convolutions with batch norm, two of them strided, then 64 features and 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((1, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        layers: list[nn.Module] = []
        for c_in, c_out, stride in widths:
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.features = nn.Sequential(nn.Linear(64 * 7 * 7, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, CLASSES)
        self.to(memory_format=torch.channels_last)  # a quarter faster on CPUs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, 28, 28] in [-1, 1] -> features [B, 64], logits [B, 10]"""
        h = self.features(self.trunk(x.contiguous(memory_format=torch.channels_last)))
        return h, self.head(h)


def augment(x: Tensor, g: torch.Generator) -> Tensor:
    """Each image turned by up to 15 degrees, scaled and sheared by up to 15 %, shifted by up to 2.8 pixels.

    x [B, 1, H, W] with background -1; the border is filled with it.
    """

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(x), generator=g) * 2 - 1) * limit

    angle, log_scale, shear = uniform(math.pi / 12), uniform(math.log(1.15)), uniform(0.15)
    cos, sin, inverse = angle.cos(), angle.sin(), (-log_scale).exp()
    row0 = torch.stack([inverse * cos, inverse * (shear * cos - sin), uniform(0.2)], dim=1)
    row1 = torch.stack([inverse * sin, inverse * (shear * sin + cos), uniform(0.2)], dim=1)
    grid = F.affine_grid(torch.stack([row0, row1], dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


def to_input(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 1], H, W >= 28 -> [N, 1, 28, 28] in [-1, 1] (the middle of it). OptionError for others."""
    ok = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 1 and min(images.shape[1:3]) >= SIZE
    if not ok:
        raise OptionError(
            "images: expected uint8 [n, 28 or more, 28 or more, 1], as digits are, got "
            f"{images.dtype} {list(images.shape)}"
        )
    top, left = (images.shape[1] - SIZE) // 2, (images.shape[2] - SIZE) // 2
    middle = np.ascontiguousarray(images[:, top : top + SIZE, left : left + SIZE, 0])
    return torch.from_numpy(middle).float()[:, None] / 127.5 - 1


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained judge. `held_out_accuracy` is its share of right labels among the 500 held-out digits."""

    net: Net
    held_out_accuracy: float
    epochs: int
    seed: int

    def _run(self, images: np.ndarray, part: int) -> np.ndarray:
        x = to_input(images)
        self.net.eval()
        with torch.inference_mode():
            return torch.cat([self.net(b)[part] for b in x.split(500)]).numpy() if len(x) else np.empty((0, FEATURES))

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 1] -> float64 [N, 64], the penultimate layer"""
        return self._run(images, 0).astype(np.float64)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 1] -> int64 [N], the digit"""
        return self._run(images, 1).argmax(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    epochs: int = EPOCHS,
    seed: int = 0,
    *,
    data: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Progress | None = None,
) -> Judge:
    """A judge trained on `data` (uint8 images, labels; None: the 4,500 training digits) with one cycle of AdamW.

    It runs on one thread: sums are then in one order, so a seed gives the same judge however many cores there are, and
    so small a network gains little from a second. Torch's global generator and number of threads are left as they were.
    """
    if epochs < 1:
        raise OptionError(f"judge_epochs: expected at least 1, got {epochs}")
    if data is None:
        digits = mnist5k("train")
        data = digits.images, digits.labels
    x, y = to_input(data[0]), torch.from_numpy(np.asarray(data[1], np.int64))
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        net = Net()
        optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_LR, weight_decay=0.02)
        per_epoch = -(-len(x) // BATCH)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=epochs * per_epoch)
        net.train()
        for epoch in range(epochs):
            for rows in torch.randperm(len(x), generator=g).chunk(per_epoch):
                _, logits = net(augment(x[rows], g))
                loss = F.cross_entropy(logits, y[rows], label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                cycle.step()
            if progress is not None:
                progress(epoch + 1, epochs)
    return _examined(net.eval(), epochs, seed)


def _examined(net: Net, epochs: int, seed: int) -> Judge:
    held = mnist5k("held_out")
    judge = Judge(net, 0.0, epochs, seed)
    return dataclasses.replace(judge, held_out_accuracy=float((judge.predict(held.images) == held.labels).mean()))


@functools.lru_cache(1)
def code_version() -> str:
    """Changes with this file and with torch: a judge of another version is another judge."""
    return hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ddpm_rt" / "judge"


def load_or_train(
    epochs: int = EPOCHS, seed: int = 0, *, folder: Path | None = None, progress: Progress | None = None
) -> Judge:
    """The judge of the user's cache, or a new one that is put there. A cache that cannot be written is done without."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    path = (folder or cache_folder()) / f"judge-{code_version()}-{epochs}-{seed}.safetensors"
    net = Net()
    try:
        net.load_state_dict(load_file(path))
        return _examined(net.eval(), epochs, seed)
    except (OSError, SafetensorError, RuntimeError):  # none there, or a damaged one
        pass
    judge = train(epochs, seed, progress=progress)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in judge.net.state_dict().items()}, part)
        os.replace(part, path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):  # the folder itself may be a file
            part.unlink()
    return judge
