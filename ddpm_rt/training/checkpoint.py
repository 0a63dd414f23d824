"""Checkpoints: safetensors files whose metadata carries the run's config as JSON.

`state.safetensors` holds all that resume needs (model.*, ema.*, optimizer.<field>.<parameter>, the step);
`model.safetensors` the EMA weights alone, for everyone else.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import OptionError
from ..reference.unet import UNet
from .config import TrainConfig

STATE, MODEL = "state.safetensors", "model.safetensors"


def write(path: Path, tensors: dict[str, Tensor], cfg: TrainConfig, step: int) -> None:
    """Whole or not at all, even if the power fails: written aside, flushed to the disk, then renamed."""
    meta = {"config": json.dumps(dataclasses.asdict(cfg)), "step": str(step)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part")
    part.touch()
    mode = part.stat().st_mode  # as the umask has it; safetensors makes its files private
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata=meta)
    except SafetensorError as e:
        raise OSError(f"{path}: cannot be written: {e}") from e
    part.chmod(mode)
    for target in (part, path.parent):
        handle = os.open(target, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if target is part:
            os.replace(part, path)


def read(path: Path) -> tuple[dict[str, Tensor], TrainConfig, int]:
    """(tensors, config, step) of either file. OptionError where it is missing, damaged or not of our making."""
    if not path.is_file():
        raise OptionError(f"checkpoint: expected a file of ddpm-rt train, found none at {path}")
    try:
        with safe_open(path, "pt") as f:
            meta = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise OptionError(f"checkpoint: {path} is damaged: {e}") from e
    try:
        return tensors, TrainConfig.from_dict(json.loads(meta["config"])), int(meta["step"])
    except (KeyError, ValueError, TypeError, AttributeError) as e:
        raise OptionError(f"checkpoint: expected config and step in the metadata of {path}, got {sorted(meta)}") from e


def load_weights(target: UNet, tensors: dict[str, Tensor], path: Path) -> None:
    """OptionError naming the first tensor that is missing, left over, or of another shape."""
    own = target.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        want = tuple(own[name].shape) if name in own else None
        got = tuple(tensors[name].shape) if name in tensors else None
        if want != got:
            raise OptionError(f"checkpoint: {path}: {name}: expected {want or 'no such tensor'}, got {got or 'none'}")
    target.load_state_dict(tensors)


def load_checkpoint(path: str | Path) -> tuple[UNet, TrainConfig]:
    """The trained network, EMA weights, in eval mode, and the config of its run.

    path: the folder of `ddpm-rt train --out`, or one of its .safetensors files. OptionError where it is none of them.
    """
    path = Path(path)
    if path.is_dir():
        path = path / MODEL
    tensors, cfg, _ = read(path)
    if any(k.startswith("ema.") for k in tensors):
        tensors = {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}
    with torch.random.fork_rng(
        devices=[]
    ):  # the initial weights, overwritten at once, cost the caller no random numbers
        model = UNet(cfg.unet())
    load_weights(model, tensors, path)
    return model.eval(), cfg
