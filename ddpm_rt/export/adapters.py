"""Modules of users as those that are exported: outputs unwrapped, times as the module wants them, conditions by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Denoiser(nn.Module):
    """module(x, t[, label]) -> eps [B, C, ...]: of a result with a `sample`, or a tuple, the tensor; of 2C channels the
    first C, the rest being a learned variance; with channels None all of them."""

    def __init__(self, module: nn.Module, channels: int | None, integer_time: bool, conditions: Sequence[str] = ()):
        super().__init__()
        self.module, self.channels, self.integer_time = module, channels, integer_time
        self.conditions = tuple(conditions)

    def forward(
        self, x: Tensor, t: Tensor, a: Tensor | None = None, b: Tensor | None = None, c: Tensor | None = None,
        d: Tensor | None = None, e: Tensor | None = None, f: Tensor | None = None, g: Tensor | None = None, h: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """a to h: the label where there is one, then the conditions, which the module takes by name."""
        t = t.round().long() if self.integer_time else t
        given = [v for v in (a, b, c, d, e, f, g, h) if v is not None]
        for v in given:  # else sizes of batches are divided by each other, where a module leaves one to a view's -1
            torch._check(v.shape[0] == x.shape[0])
        labels = given[: len(given) - len(self.conditions)]
        named = dict(zip(self.conditions, given[len(labels) :], strict=True))
        return eps_of(self.module(x, t, *labels, **named), self.channels)


class Trunk(nn.Module):
    def __init__(self, module: nn.Module, channels: int | None):
        super().__init__()
        self.module, self.channels = module, channels

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return eps_of(self.module.trunk(x, rows), self.channels)


class Rows(nn.Module):
    def __init__(self, module: nn.Module, integer_time: bool):
        super().__init__()
        self.module, self.integer_time = module, integer_time

    def forward(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        t = t.round().long() if self.integer_time else t
        return self.module.rows(t) if label is None else self.module.rows(t, label)


def eps_of(out: Any, channels: int | None) -> Tensor:
    out = getattr(out, "sample", out)
    out = out[0] if isinstance(out, tuple) else out
    return out[:, :channels] if channels is not None and out.shape[1] == 2 * channels else out
