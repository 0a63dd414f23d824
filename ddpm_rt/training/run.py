"""A run from start, or from where it was killed, to its last step, with everything that it writes on the way."""

from __future__ import annotations

import sys
import time
import typing
from pathlib import Path

import torch

from ..errors import NumericError
from . import checkpoint
from .config import TrainConfig
from .data import Data
from .distributed import Group
from .loop import Trainer, learning_rate
from .report import Log, plot_loss, sample, save_grid

FLUSH_EVERY = 20  # steps between two looks at the loss: a look waits for the device


def run(
    cfg: TrainConfig,
    data: Data,
    folder: Path,
    *,
    device: torch.device | None = None,
    group: Group | None = None,
    resume: bool = True,
    stream=None,
) -> Trainer:
    """Trains until `cfg.steps`. Goes on from the folder's state where there is one, unless resume is False.

    Writes state.safetensors and model.safetensors every `save_every` steps and at the end, log.csv, loss.png and
    samples/STEP.png. Progress goes to `stream` (standard error): a bar on a terminal, else a line per checkpoint.
    NumericError, with the last good checkpoint in place, if the loss is not finite.
    """
    trainer = Trainer(cfg, data, device, group)
    stream = sys.stderr if stream is None else stream
    first_process = trainer.group.is_first
    if resume and (folder / checkpoint.STATE).exists():
        trainer.load(folder)
    elif first_process:
        for name in (checkpoint.STATE, checkpoint.MODEL, "log.csv"):
            (folder / name).unlink(missing_ok=True)
    trainer.group.barrier()
    log = Log(folder)
    if first_process:
        folder.mkdir(parents=True, exist_ok=True)
        log.start(trainer.step)

    with Progress(trainer.step, cfg.steps, stream if first_process else None) as progress:
        pending, start = [], time.monotonic()
        while trainer.step < cfg.steps:
            lr = learning_rate(cfg, trainer.step)
            loss, norm = trainer.train_step()
            step = trainer.step
            pending.append((step, loss, norm, lr))
            saving = step % cfg.save_every == 0 or step == cfg.steps
            sampling = cfg.sample_every > 0 and (step % cfg.sample_every == 0 or step == cfg.steps)
            if saving or sampling or step % FLUSH_EVERY == 0:
                seconds = round(time.monotonic() - start, 3)
                lines = [
                    {"step": s, "loss": float(x), "grad_norm": float(g), "lr": r, "seconds": seconds}
                    for s, x, g, r in pending
                ]
                pending = []
                bad = next((line for line in lines if not abs(line["loss"]) < float("inf")), None)
                if bad:
                    raise NumericError(f"loss: expected a finite number, got {bad['loss']} at step {bad['step']}")
                if first_process:
                    log.append(lines)
                progress.show(step, [line["loss"] for line in lines])
            if first_process and saving:
                trainer.save(folder)
                progress.line()
            if first_process and sampling:
                picture(trainer, folder / "samples" / f"{step:06d}.png")
                plot_loss(log, folder / "loss.png")
    if first_process:
        plot_loss(log, folder / "loss.png")
    trainer.group.barrier()
    return trainer


def picture(trainer: Trainer, path: Path, *, rows: int = 2, scale: float = 2.0, steps: int = 25) -> None:
    """A grid of samples of the EMA weights, the same seeds every time: a column per class, up to ten."""
    classes = trainer.model.cfg.num_classes
    columns = 8 if classes is None else min(classes, 10)
    n = rows * columns
    labels = None if classes is None else torch.arange(n) % columns
    scale = scale if trainer.cfg.label_dropout > 0 else 1.0
    images = sample(trainer.averaged(), trainer.schedule, labels, n, seed=trainer.cfg.seed, scale=scale, steps=steps)
    save_grid(images, path, columns)


class Progress:
    """A bar with loss and ETA on a terminal; elsewhere a line where `line` is called."""

    def __init__(self, start: int, steps: int, stream):
        self.first, self.steps, self.stream, self.bar = start, steps, stream, None
        self.began, self.step, self.losses = time.monotonic(), start, []
        if stream is not None and stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=start, unit="step", file=stream, dynamic_ncols=True)

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *unused: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, step: int, losses: list[float]) -> None:
        self.losses += losses
        if self.bar is not None:
            recent = self.losses = self.losses[-200:]
            self.bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
            self.bar.update(step - self.step)
        self.step = step

    def line(self) -> None:
        if self.stream is None or self.bar is not None:
            return
        rate = (time.monotonic() - self.began) / max(1, self.step - self.first)
        left = rate * (self.steps - self.step)
        loss = sum(self.losses) / max(1, len(self.losses))
        print(
            f"step {self.step}/{self.steps} loss {loss:.4f} {rate:.3f} s/step, {left / 60:.0f} min left",
            file=self.stream,
            flush=True,
        )
        self.losses = []
