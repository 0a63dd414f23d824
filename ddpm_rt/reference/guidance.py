"""Guided denoisers, one sample at a time: what a guidance option does, written as its paper has it.

Sources: Ho & Salimans 2022 (2207.12598) eq. 6 with s = 1 + w; Lin et al. 2023 (2305.08891) section 3.4; Kynkäänniemi et al. 2024
(2404.07724) eq. 6; Saharia et al. 2022 (2205.11487) section 2.3; Dhariwal & Nichol 2021 (2105.05233) algorithm 2; Karras et al.
2024 (2406.02507), where the network that guides is another one.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .denoise import Denoiser, Network
from .levels import Level


@dataclasses.dataclass
class Guided(Denoiser):
    """`network` is the conditional one. Levels of the interval and of the gradient are sigma / alpha and sigma of x's own space."""

    uncond: Network | None = None
    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    threshold: tuple[float, float] | None = None
    gradient: Network | None = None  # (x, network time) -> d log p(y | x) / dx
    classifier_scale: float = 0.0
    evaluations: int = 0

    def evaluate(self, x: Tensor, level: Level) -> Tensor:
        cond = super().evaluate(x, level)
        self.evaluations += 1
        out = cond
        is_inside = self.interval is None or self.interval[0] < level.rel <= self.interval[1]
        if self.uncond is not None and is_inside:
            uncond = Denoiser.evaluate(dataclasses.replace(self, network=self.uncond), x, level)
            self.evaluations += 1
            out = uncond + self.scale * (cond - uncond)
        if self.rescale:
            out = self.rescale * out * (cond.std() / out.std()) + (1 - self.rescale) * out
        if self.gradient is not None and self.classifier_scale:
            moved = -level.sigma * self.classifier_scale * self.gradient(x, self.told(level.t))  # of eps
            zero = torch.zeros_like(x)
            per_output = self._meaning(zero, torch.ones_like(x), level)[1] - self._meaning(zero, zero, level)[1]
            out = out + moved / per_output
        return out

    def limited(self, x0: Tensor) -> Tensor:
        if self.threshold is None:
            return super().limited(x0)
        p, cap = self.threshold
        s = torch.quantile(x0.abs().flatten(), p).clamp(1, cap)
        return x0.clamp(-s, s) / s
