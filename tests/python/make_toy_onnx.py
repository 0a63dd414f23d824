"""Writes the models and expected outputs that tests/cpp/test_backends.cpp reads: `python make_toy_onnx.py FOLDER`.

Per model NAME: NAME.txt (key value lines), NAME.onnx, NAME.temb.onnx where the embedding is split off, and NAME.bin:
float32, rows x [x (N) | t (1) | label (1) | expected (M)], expected by PyTorch.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ddpm_rt.reference.unet import UNet, UNetConfig

ROWS = 8


class Trunk(nn.Module):
    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.unet.trunk(x, rows)


class Temb(nn.Module):
    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return self.unet.rows(t, label)


def export(module: nn.Module, inputs: dict[str, torch.Tensor], output: str, path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        dynamo=True,
        opset_version=18,
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        verbose=False,
    )
    program.save(str(path), external_data=False)


def write_model(folder: Path, name: str, cfg: UNetConfig, split: bool) -> None:
    """One model of random weights (none of them zero) with `ROWS` evaluations of it."""
    torch.manual_seed(0)
    unet = UNet(cfg).eval()
    for p in unet.parameters():  # zero_init would hide every residual branch
        if not p.any():
            nn.init.normal_(p, std=0.02)
    inputs = {"x": torch.randn(ROWS, cfg.in_channels, *cfg.image_size), "t": torch.linspace(0, 999, ROWS).round()}
    classes = cfg.num_classes or 0
    if classes:
        inputs["label"] = torch.arange(ROWS) % (classes + 1)
    with torch.no_grad():
        rows = unet.rows(*list(inputs.values())[1:])
        expected = unet(*inputs.values())
    sample = {k: v[:3] for k, v in inputs.items()}  # the batch must be neither 0 nor 1 to stay symbolic
    if split:
        export(Trunk(unet), {"x": sample["x"], "rows": rows[:3]}, "eps", folder / f"{name}.onnx")
        export(Temb(unet), {k: v for k, v in sample.items() if k != "x"}, "rows", folder / f"{name}.temb.onnx")
    else:
        export(unet, sample, "eps", folder / f"{name}.onnx")
    (folder / f"{name}.txt").write_text(
        f"shape {cfg.in_channels} {cfg.image_size[0]} {cfg.image_size[1]}\nclasses {classes}\n"
        f"rows_width {rows.shape[1] if split else 0}\nrows {ROWS}\nout {math.prod(expected.shape[1:])}\n"
    )
    label = inputs.get("label", torch.zeros(ROWS)).float()[:, None]
    table = torch.cat([inputs["x"].flatten(1), inputs["t"][:, None], label, expected.flatten(1)], dim=1)
    table.numpy().astype(np.float32).tofile(folder / f"{name}.bin")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    small = {"image_size": (16, 16), "channels": 16, "channel_mult": (1, 2), "res_blocks": 1, "heads": 2, "groups": 4}
    write_model(folder, "split", UNetConfig(**small, in_channels=1, num_classes=5, patch=2), split=True)
    write_model(folder, "whole", UNetConfig(**small, in_channels=3, num_classes=5, film=False), split=False)
    write_model(folder, "unlabelled", UNetConfig(**small, in_channels=3, learned_variance=True), split=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
