"""The training loop: AdamW, EMA, gradient clipping, label dropout, exact resume.

Everything random in step k comes from a generator seeded with (seed, k), never from a stream that runs on, so a run
killed at any point and resumed is the run that was never killed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..reference.losses import WEIGHTS, per_image_mse
from ..reference.schedule import Schedule
from ..reference.unet import UNet, UNetConfig
from .data import ImageSet


@dataclasses.dataclass
class TrainConfig:
    """One run. Written as JSON into every checkpoint."""

    data: str = "mnist5k"
    model: dict = dataclasses.field(default_factory=dict)  # UNetConfig's fields
    schedule: dict = dataclasses.field(default_factory=lambda: {"name": "linear", "T": 1000})
    loss: str = "simple"
    steps: int = 20000
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    label_dropout: float = 0.1
    seed: int = 0
    save_every: int = 250
    class_names: tuple[str, ...] = ()


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to zero at `cfg.steps`."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    return cfg.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / cfg.steps)))


def generator(seed: int, *key: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def batch_indices(n: int, cfg: TrainConfig, step: int) -> torch.Tensor:
    """The images of one step: a fresh permutation per epoch, walked through in order.  -> [batch] int64"""
    first = step * cfg.batch
    order: dict[int, torch.Tensor] = {}
    rows = []
    for k in range(first, first + cfg.batch):
        epoch = k // n
        if epoch not in order:
            order[epoch] = torch.randperm(n, generator=generator(cfg.seed, 1, epoch))
        rows.append(order[epoch][k % n])
    return torch.stack(rows)


class Trainer:
    """model, optimizer, EMA and the step counter, with `save` and `load` of all of them in one file."""

    def __init__(self, cfg: TrainConfig, data: ImageSet):
        self.cfg, self.data, self.step = cfg, data, 0
        torch.manual_seed(cfg.seed)
        self.model = UNet(UNetConfig(**cfg.model)).to(memory_format=torch.channels_last)
        self.ema = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, betas=(0.9, 0.99)
        )
        self.schedule = Schedule.make(**cfg.schedule)
        self.weight = WEIGHTS[cfg.loss](self.schedule).float()
        self.images = torch.from_numpy(data.images).permute(0, 3, 1, 2)  # [N, C, H, W] uint8
        self.labels = None if data.labels is None else torch.from_numpy(data.labels)

    def train_step(self) -> float:
        cfg, model = self.cfg, self.model
        draw = generator(cfg.seed, 0, self.step)
        rows = batch_indices(len(self.images), cfg, self.step)
        x0 = self.images[rows].float() / 127.5 - 1
        t = torch.randint(len(self.schedule), (cfg.batch,), generator=draw)
        eps = torch.randn(x0.shape, generator=draw)
        label = None
        if self.labels is not None:
            drop = torch.rand(cfg.batch, generator=draw) < cfg.label_dropout
            label = torch.where(drop, model.cfg.num_classes, self.labels[rows])
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=draw)))  # dropout

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(cfg, self.step)
        x_t = self.schedule.q_sample(x0, t, eps).contiguous(memory_format=torch.channels_last)
        loss = (self.weight[t] * per_image_mse(model(x_t, t.float(), label), eps)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        self.optimizer.step()
        self.step += 1
        decay = min(cfg.ema, (1 + self.step) / (10 + self.step))  # a young average forgets its random start sooner
        with torch.no_grad():
            for name, value in model.state_dict().items():
                self.ema[name].lerp_(value, 1 - decay)
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """`state.safetensors` (all that resume needs) and `model.safetensors` (the EMA weights and their config)."""
        named = dict(self.model.named_parameters())
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        for name, p in named.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        meta = {"config": json.dumps(dataclasses.asdict(self.cfg)), "step": str(self.step)}
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in (("state", tensors), ("model", self.ema)):
            part = folder / f".{file}.part"
            save_file({k: v.contiguous() for k, v in content.items()}, part, metadata=meta)
            os.replace(part, folder / f"{file}.safetensors")

    def load(self, folder: Path) -> None:
        with safe_open(folder / "state.safetensors", "pt") as f:
            self.step = int(f.metadata()["step"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.ema = {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}
        for name, p in self.model.named_parameters():
            state = {k.split(".", 2)[1]: v for k, v in tensors.items() if k.startswith("optimizer.") and k.split(".", 2)[2] == name}
            if state:
                state["exp_avg"] = state["exp_avg"].to(memory_format=torch.preserve_format)
                self.optimizer.state[p] = state


def run(cfg: TrainConfig, data: ImageSet, folder: Path) -> Trainer:
    trainer = Trainer(cfg, data)
    if (folder / "state.safetensors").exists():
        trainer.load(folder)
    losses, start, first = [], time.monotonic(), trainer.step
    while trainer.step < cfg.steps:
        losses.append(trainer.train_step())
        if trainer.step % cfg.save_every == 0 or trainer.step == cfg.steps:
            trainer.save(folder)
            rate = (time.monotonic() - start) / (trainer.step - first)
            print(f"step {trainer.step} loss {np.mean(losses[-cfg.save_every:]):.4f} {rate:.3f} s/step", flush=True)
    return trainer
