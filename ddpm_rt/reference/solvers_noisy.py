"""Samplers with noise of their own kind as plain loops: Karras et al.'s churn, consistency, Langevin, predictor-corrector.

The conventions are those of `solvers`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .levels import Level
from .solvers import Denoise, Noise, _add


def karras(
    denoise: Denoise,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    *,
    place=None,
    is_heun: bool = True,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    is_flow: bool = False,
) -> Tensor:
    """Karras et al. 2206.00364 algorithm 2; without its second order with is_heun False. place(sigma) -> the network's level
    where churn has raised sigma. Levels have alpha 1, or a flow's 1 - sigma."""
    n, row = len(levels) - 1, 0

    def derivative(x: Tensor, at: Level) -> Tensor:
        x0, eps = denoise(x, at)
        return eps - x0 if is_flow else eps

    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= a.sigma <= s_tmax else 0.0
        if gamma > 0:
            raised = place(a.sigma * (1 + gamma))
            if i == 0:
                row = 1  # a row of its own
            x = x + s_noise * math.sqrt(raised.sigma**2 - a.sigma**2) * noise(row - 1)
            a = raised
        if b.sigma == 0 or not is_heun:
            x0, eps = denoise(x, a)
            x = b.alpha * x0 + b.sigma * eps
            row += 1
            continue
        d = derivative(x, a)
        ahead = derivative(x + (b.sigma - a.sigma) * d, b)
        x = x + (b.sigma - a.sigma) / 2 * (d + ahead)
        row += 2
    return x


def lcm(
    denoise: Denoise,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    *,
    timestep_scaling: float = 10.0,
    sigma_min: float = 0.0,
) -> Tensor:
    """Luo et al. 2310.04378 algorithm 3; with timestep_scaling 0, Song et al. 2303.01469 algorithm 1."""
    n = len(levels) - 1
    for row, (a, b) in enumerate(itertools.pairwise(levels)):
        x0, _ = denoise(x, a)
        if timestep_scaling:
            t = timestep_scaling * a.t
            x0 = t / math.sqrt(t**2 + 0.25) * x0 + 0.25 / (t**2 + 0.25) * x
        x = x0 if row == n - 1 else b.alpha * x0 + math.sqrt(b.sigma**2 - sigma_min**2) * noise(row)
    return x


def langevin(
    denoise: Denoise,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    *,
    step_lr: float = 2e-5,
    inner_steps: int = 100,
    step_size: str = "ncsn",
    denoise_last: bool = True,
) -> Tensor:
    """Annealed Langevin dynamics: Song & Ermon 1907.05600 algorithm 1 (ncsn), 2006.09011 algorithm 1 (ncsnv2)."""
    *visited, _ = levels
    row = 0
    for level in visited:
        alpha = step_lr * (level.sigma / visited[-1].sigma) ** 2
        for _ in range(inner_steps):
            _, eps = denoise(x, level)
            score = -eps / level.sigma
            if step_size == "ncsn":
                x = _add(x + alpha / 2 * score, math.sqrt(alpha), noise, row)
            else:
                x = _add(x + alpha * score, math.sqrt(2 * alpha), noise, row)
            row += 1
    if denoise_last:
        x = denoise(x, visited[-1])[0]  # x + sigma^2 score
    return x


def predictor_corrector(
    denoise: Denoise,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    *,
    snr: float = 0.16,
    corrector_steps: int = 1,
) -> Tensor:
    """Song et al. 2011.13456 algorithms 2 to 5 with this sample's own norms; reverse diffusion predictor (appendix E)."""
    n, row = len(levels) - 1, 0
    for i, (a, b) in enumerate(itertools.pairwise(levels)):
        f = a.alpha / b.alpha
        for _ in range(corrector_steps):
            _, eps = denoise(x, a)
            score, z = -eps / a.sigma, noise(row)
            step = 2 * f**2 * (snr * torch.linalg.vector_norm(z) / torch.linalg.vector_norm(score)) ** 2
            x = x + step * score + (2 * step).sqrt() * z
            row += 1
        _, eps = denoise(x, a)
        score, G2 = -eps / a.sigma, a.sigma**2 - f**2 * b.sigma**2
        x = x + (1 - f) * x + G2 * score
        if i < n - 1:
            x = x + math.sqrt(G2) * noise(row)
        row += 1
    return x
