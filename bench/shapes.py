"""The production shapes that every bench names, and the plans that stand for them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ddpm_rt" / "bench"
ROOT = Path(__file__).resolve().parent.parent

# Random weights stand in wherever size is the point. UNetConfig's fields; docs in ddpm_rt/reference/unet.py.
SHAPES = {
    "digits": None,  # the shipped, trained model
    "cifar10": {"film": False, "num_classes": 10},  # DDPM's 35.7 M-parameter network, with labels
    "tiny": {  # 16 x 16, where everything around the network shows
        "image_size": (16, 16), "in_channels": 1, "channels": 16, "channel_mult": (1, 2), "res_blocks": 1,
        "attention": (), "groups": 4, "num_classes": 10,
    },
}  # fmt: skip


def network(shape: str):
    """The torch module of a shape, in eval mode, and its class count."""
    import torch

    from ddpm_rt.reference.unet import UNet, UNetConfig
    from ddpm_rt.training.checkpoint import load_checkpoint

    if SHAPES[shape] is None:
        model, _ = load_checkpoint(ROOT / "examples" / "unet.safetensors")
        return model
    torch.manual_seed(0)
    model = UNet(UNetConfig(**SHAPES[shape])).eval()
    for name, p in model.named_parameters():  # zero-initialised branches would let a backend skip work
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    return model


def plans(shape: str) -> tuple[Path, Path]:
    """(plan as this project exports it, plan whose network is the plain f(x, t, label)), made once per weights."""
    from ddpm_rt.export import export_plan

    source = SHAPES[shape] or (ROOT / "examples" / "unet.safetensors").read_bytes()
    key = hashlib.sha256(source if isinstance(source, bytes) else json.dumps(source).encode()).hexdigest()[:16]
    ours, plain = CACHE / f"{shape}-{key}.plan", CACHE / f"{shape}-{key}-plain.plan"
    if not (ours.exists() and plain.exists()):
        CACHE.mkdir(parents=True, exist_ok=True)
        model = network(shape)
        for path, split in ((ours, True), (plain, False)):
            export_plan(
                model, path, shape=(model.cfg.in_channels, *model.cfg.image_size), schedule="linear",
                num_classes=model.cfg.num_classes, split=split,
                defaults={"sampler": "ddim", "steps": 50, "scale": 3.0, "clip": "rederive"},
            )  # fmt: skip
    return ours, plain


def alpha_bar() -> np.ndarray:
    """The linear schedule of all shapes."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
