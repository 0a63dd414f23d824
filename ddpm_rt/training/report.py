"""What a run leaves to look at: log.csv, loss.png, and grids of samples."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..reference.philox import noise
from ..reference.samplers import ddim, guided
from ..reference.schedule import Schedule, timesteps
from ..reference.unet import UNet

FIELDS = ("step", "loss", "grad_norm", "lr", "seconds")


class Log:
    """log.csv, one line per step. `start` drops the lines of steps that a killed run did and this one does again."""

    def __init__(self, folder: Path):
        self.path = folder / "log.csv"

    def start(self, step: int) -> None:
        kept = [line for line in self.rows() if line["step"] <= step]
        part = self.path.with_name(".log.part")
        with part.open("w", newline="") as f:
            writer = csv.DictWriter(f, FIELDS)
            writer.writeheader()
            writer.writerows({**line, "step": int(line["step"])} for line in kept)
        os.replace(part, self.path)

    def append(self, lines: list[dict]) -> None:
        with self.path.open("a", newline="") as f:
            csv.DictWriter(f, FIELDS).writerows(lines)

    def rows(self) -> list[dict[str, float]]:
        """A line that a kill cut short is dropped."""
        if not self.path.exists():
            return []
        lines = []
        with self.path.open(newline="") as f:
            for line in csv.DictReader(f):
                try:
                    lines.append({k: float(line[k]) for k in FIELDS})
                except (KeyError, TypeError, ValueError):
                    continue
        return lines


def plot_loss(log: Log, path: Path) -> None:
    """The loss of every step and its mean over 1/50 of the run, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = log.rows()
    if not rows:
        return
    step, loss = np.array([(r["step"], r["loss"]) for r in rows]).T
    width = max(1, len(loss) // 50)
    mean = np.convolve(loss, np.ones(width) / width, mode="valid")
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(step, loss, color="0.8", linewidth=0.5, label="step")
    axes.plot(step[width - 1 :], mean, color="C0", label=f"mean of {width}")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    part = path.with_name(".loss.part")
    figure.savefig(part, dpi=120, format="png")
    os.replace(part, path)


@torch.no_grad()
def sample(
    model: UNet, schedule: Schedule, labels: Tensor | None, n: int, *, seed: int, scale: float, steps: int
) -> Tensor:
    """n images by the reference DDIM from the engine's own noise: image i belongs to seed + i.  -> [n, C, H, W]"""
    cfg = model.cfg
    device = next(model.parameters()).device
    shape = (cfg.in_channels, *cfg.image_size)
    x = np.stack([noise((seed + i) % 2**64, 0, shape) for i in range(n)])
    network = model if labels is None else guided(model, labels.to(device), cfg.num_classes, scale)
    times = timesteps("leading", len(schedule), min(steps, len(schedule)))
    return ddim(network, schedule, torch.from_numpy(x).to(device), times)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """[n, C, H, W] in [-1, 1] -> PNG, 1 pixel of border. Of 2 or more than 4 channels the first is shown."""
    from PIL import Image

    pixels = ((images.cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if pixels.shape[-1] not in (1, 3):
        pixels = pixels[..., :1]
    n, h, w, c = pixels.shape
    rows = math.ceil(n / columns)
    grid = np.zeros((rows * (h + 1) - 1, columns * (w + 1) - 1, c), np.uint8)
    for i, image in enumerate(pixels):
        y, x = i // columns * (h + 1), i % columns * (w + 1)
        grid[y : y + h, x : x + w] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(grid[..., 0] if c == 1 else grid).save(part, format="png")
    os.replace(part, path)
