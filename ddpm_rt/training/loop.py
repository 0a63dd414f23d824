"""The training loop: AdamW, EMA, gradient clipping, label dropout, exact resume.

Everything random in step k comes from a generator seeded with (seed, k), never from a stream that runs on, so a run
killed at any point and resumed is the run that was never killed. Each process draws for the whole step and takes its
share, so that two processes with half the batch each are one process with all of it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..reference.losses import WEIGHTS, hybrid_loss, per_image_mse
from ..reference.unet import UNet
from . import checkpoint
from .config import TrainConfig
from .data import Data
from .distributed import Group

__all__ = ["TrainConfig", "Trainer", "batch_indices", "generator", "learning_rate"]


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to zero at `cfg.steps`."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    return cfg.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / cfg.steps)))


def generator(seed: int, *key: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def batch_indices(n: int, batch: int, seed: int, step: int) -> Tensor:
    """The images of one step: a fresh permutation per epoch, walked through in order.  -> [batch] int64"""
    order: dict[int, Tensor] = {}
    rows = []
    for k in range(step * batch, (step + 1) * batch):
        epoch = k // n
        if epoch not in order:
            order[epoch] = torch.randperm(n, generator=generator(seed, 1, epoch))
        rows.append(order[epoch][k % n])
    return torch.stack(rows)


def crop_and_flip(images: np.ndarray, size: tuple[int, int], flip: bool, draw: torch.Generator) -> np.ndarray:
    """A random window of `size` out of each image, mirrored with probability 1/2.  [B, H, W, C] -> [B, h, w, C]"""
    (h, w), (n, height, width, _) = size, images.shape
    top = torch.randint(height - h + 1, (n,), generator=draw).tolist()
    left = torch.randint(width - w + 1, (n,), generator=draw).tolist()
    mirror = (torch.rand(n, generator=draw) < 0.5).tolist()
    cut = [image[y : y + h, x : x + w] for image, y, x in zip(images, top, left)]
    return np.stack([c[:, ::-1] if flip and m else c for c, m in zip(cut, mirror)])


def has_fast_bf16(device: torch.device) -> bool:
    """Whether autocast to bf16 gains anything: a GPU with bf16, or a CPU with AMX. AVX2 emulates it at a loss."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class Trainer:
    """model, optimizer, EMA and the step counter, with `save` and `load` of all of them in one file."""

    def __init__(self, cfg: TrainConfig, data: Data, device: torch.device | None = None, group: Group | None = None):
        self.cfg, self.data, self.step = cfg, data, 0
        self.device, self.group = device or torch.device("cpu"), group or Group()
        torch.manual_seed(cfg.seed)
        self.model = UNet(cfg.unet()).to(self.device, memory_format=torch.channels_last)
        self.ema = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, betas=(0.9, 0.99)
        )
        self.schedule = cfg.make_schedule()
        weight = WEIGHTS[cfg.loss](self.schedule) if cfg.loss in WEIGHTS else None
        self.weight = None if weight is None else weight.float().to(self.device)
        self.labels = None if data.labels is None else torch.from_numpy(data.labels)
        fast = cfg.precision == "bf16" or (cfg.precision == "auto" and has_fast_bf16(self.device))
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    def pictures(self, rows: Tensor, draw: torch.Generator) -> Tensor:
        """Training images in [-1, 1].  [B] -> [B, C, H, W] float32"""
        images = self.data.batch(rows.numpy())
        size = self.model.cfg.image_size
        if self.cfg.flip or images.shape[1:3] != size:
            images = crop_and_flip(images, size, self.cfg.flip, draw)
        return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step.  -> (loss, norm of the gradient before clipping), scalars on the device"""
        cfg, model, group = self.cfg, self.model, self.group
        n = cfg.batch * cfg.accumulate * group.size
        draw = generator(cfg.seed, 0, self.step)
        rows = batch_indices(len(self.data), n, cfg.seed, self.step)
        t = torch.randint(len(self.schedule), (n,), generator=draw)
        eps = torch.randn(n, model.cfg.in_channels, *model.cfg.image_size, generator=draw)
        label = None
        if self.labels is not None:
            drop = torch.rand(n, generator=draw) < cfg.label_dropout
            label = torch.where(drop, model.cfg.num_classes, self.labels[rows])
        dropout_seed = int(torch.randint(2**62, (1,), generator=draw))

        for param_group in self.optimizer.param_groups:
            param_group["lr"] = learning_rate(cfg, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for turn in range(group.rank * cfg.accumulate, (group.rank + 1) * cfg.accumulate):
            part = slice(turn * cfg.batch, (turn + 1) * cfg.batch)
            torch.manual_seed(dropout_seed + turn)
            x0 = self.pictures(rows[part], generator(cfg.seed, 2, self.step, turn))
            loss = self.loss(x0, t[part], eps[part], None if label is None else label[part]) / cfg.accumulate
            loss.backward()
            total += loss.detach()
        group.mean_gradients(model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        self.optimizer.step()
        self.step += 1
        decay = min(cfg.ema, (1 + self.step) / (10 + self.step))  # a young average forgets its random start sooner
        with torch.no_grad():
            for name, value in model.state_dict().items():
                self.ema[name].lerp_(value, 1 - decay)
        return group.mean(total), norm.detach()

    def loss(self, x0: Tensor, t: Tensor, eps: Tensor, label: Tensor | None) -> Tensor:
        """The mean loss of a batch of images, labels already dropped.  [B, C, H, W], [B], [B, C, H, W], [B] -> []"""
        x0, t, eps = (v.to(self.device, non_blocking=True) for v in (x0, t, eps))
        label = None if label is None else label.to(self.device)
        x_t = self.schedule.q_sample(x0, t, eps).contiguous(memory_format=torch.channels_last)
        with self.autocast:
            out = self.model(x_t, t.float(), label)
        out = out.float()
        if self.weight is None:
            return hybrid_loss(self.schedule, out, x0, x_t, t, eps).mean()
        return (self.weight[t] * per_image_mse(out, eps)).mean()

    def averaged(self) -> UNet:
        """A copy of the network with the EMA weights, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            model = UNet(self.model.cfg)
        model.load_state_dict(self.ema)
        return model.to(self.device).eval()

    def save(self, folder: Path) -> None:
        """model.safetensors first: a run killed between the two resumes from the older state and writes both again."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        checkpoint.write(folder / checkpoint.MODEL, self.ema, self.cfg, self.step)
        checkpoint.write(folder / checkpoint.STATE, tensors, self.cfg, self.step)

    def load(self, folder: Path) -> None:
        """Goes on where `save` was. Tensors keep their memory layout, on which the order of float sums may depend."""
        path = folder / checkpoint.STATE
        tensors, _, step = checkpoint.read(path)
        part = {"model": {}, "ema": {}, "optimizer": {}}
        for key, value in tensors.items():
            head, _, name = key.partition(".")
            if head not in part:
                raise OptionError(f"checkpoint: {path}: {key}: expected model., ema. or optimizer. before the name")
            part[head][name] = value
        checkpoint.load_weights(self.model, part["ema"], path)
        for name, value in self.ema.items():
            value.copy_(part["ema"][name])
        checkpoint.load_weights(self.model, part["model"], path)
        for name, p in self.model.named_parameters():
            state = {}
            for field in ("step", "exp_avg", "exp_avg_sq"):
                value = part["optimizer"].get(f"{field}.{name}")
                if value is None or (field != "step" and value.shape != p.shape):
                    raise OptionError(
                        f"checkpoint: {path}: optimizer.{field}.{name}: expected {tuple(p.shape)}, got none"
                    )
                state[field] = value if field == "step" else torch.empty_like(p).copy_(value).detach()
            self.optimizer.state[p] = state
        self.step = step
