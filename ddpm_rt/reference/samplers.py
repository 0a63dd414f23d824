"""DDPM and DDIM as plain loops, written from the papers' formulas; the oracle of the compiled tables.

Sources: Ho et al. 2020 (2006.11239) algorithm 2; Nichol & Dhariwal 2021 (2102.09672) eq. 15 and 19; Song et al. 2021
(2010.02502) eq. 12 and 16; Ho & Salimans 2022 (2207.12598) with s = 1 + w; Salimans & Ho 2022 (2202.00512) for v.

| name   | meaning                                                                              |
|--------|--------------------------------------------------------------------------------------|
| ab     | alpha_bar at the current timestep                                                    |
| ab_p   | alpha_bar at the next visited timestep, 1 behind the last one                        |
| beta   | 1 - ab / ab_p: the variance of the (respaced) step, Nichol & Dhariwal eq. 19         |

Everything runs in the dtype of the `x` that is passed in: float64 for an oracle, float32 for pictures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .schedule import Schedule

# (x [B, C, ...], t [B] int64) -> [B, C, ...], or [B, 2C, ...] with a learned range
Network = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]  # row (0, 1, ...) -> standard normal z, shaped as x

CLIPS = ("none", "keep_eps", "rederive")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


def guided(model: Callable[..., Tensor], label: Tensor, null: int, scale: float) -> Network:
    """Classifier-free guidance, u + s (c - u): s = 0 unconditional, s = 1 conditional, either from one evaluation.

    Only the noise half of an output with learned variance is guided; the variance stays the conditional one.
    label [B] int64.
    """

    def network(x: Tensor, t: Tensor) -> Tensor:
        if scale == 1:
            return model(x, t, label)
        u = model(x, t, torch.full_like(label, null))
        if scale == 0:
            return u
        c = model(x, t, label)
        n = x.shape[1]
        return torch.cat([u[:, :n] + scale * (c[:, :n] - u[:, :n]), c[:, n:]], dim=1)

    return network


def predictions(x: Tensor, out: Tensor, ab: float, prediction: str) -> tuple[Tensor, Tensor]:
    """(x0, eps) from a network output of type eps, x0 or v = sqrt(ab) eps - sqrt(1 - ab) x0.  [B, C, ...] each"""
    a, sigma = math.sqrt(ab), math.sqrt(1 - ab)
    if prediction == "eps":
        return (x - sigma * out) / a, out
    if prediction == "x0":
        return out, (x - a * out) / sigma
    if prediction == "v":
        return a * x - sigma * out, a * out + sigma * x
    raise ValueError(f"prediction: expected eps, x0 or v, got {prediction!r}")


def _walk(schedule: Schedule, times: Sequence[int]) -> list[tuple[int, float, float]]:
    """(t, ab, ab_p) of every visited timestep."""
    if not times or any(b >= a for a, b in itertools.pairwise(times)) or times[-1] < 0 or times[0] >= len(schedule):
        raise ValueError(f"times: expected strictly decreasing timesteps in 0..{len(schedule) - 1}, got {list(times)}")
    ab = [float(schedule.alpha_bar[t]) for t in times]
    return list(zip(times, ab, [*ab[1:], 1.0]))


def ddpm(
    network: Network,
    schedule: Schedule,
    x: Tensor,
    times: Sequence[int],
    noise: Noise,
    *,
    variance: str = "fixed_small",
    clip: tuple[float, float] | None = (-1.0, 1.0),
    prediction: str = "eps",
) -> Tensor:
    """DDPM's ancestral sampling, algorithm 2, on `times` (all of T-1..0 in the paper).  x_T [B, C, ...] -> x_0

    variance: fixed_small beta~ (eq. 7), fixed_large beta, or learned_range (Nichol & Dhariwal eq. 15). x0 is clamped
    to `clip` before the posterior mean. No noise at the last step.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance: expected one of {list(VARIANCES)}, got {variance!r}")
    channels = x.shape[1]
    for row, (t, ab, ab_p) in enumerate(_walk(schedule, times)):
        out = network(x, torch.full((len(x),), t, device=x.device))
        x0, _ = predictions(x, out[:, :channels], ab, prediction)
        if clip is not None:
            x0 = x0.clamp(*clip)
        if ab_p == 1:  # the posterior of the end is x0 itself
            x = x0
            continue
        beta = 1 - ab / ab_p
        mean = math.sqrt(ab_p) * beta / (1 - ab) * x0 + math.sqrt(ab / ab_p) * (1 - ab_p) / (1 - ab) * x
        small = (1 - ab_p) / (1 - ab) * beta
        if variance == "learned_range":
            f = (out[:, channels:] + 1) / 2
            std = (0.5 * (f * math.log(beta) + (1 - f) * math.log(small))).exp()
        else:
            std = math.sqrt(small if variance == "fixed_small" else beta)
        x = mean + std * noise(row)
    return x


def ddim(
    network: Network,
    schedule: Schedule,
    x: Tensor,
    times: Sequence[int],
    noise: Noise | None = None,
    *,
    eta: float = 0.0,
    clip: str = "rederive",
    clip_range: tuple[float, float] = (-1.0, 1.0),
    prediction: str = "eps",
) -> Tensor:
    """DDIM, eq. 12 with the sigma of eq. 16.  x_T [B, C, ...] -> x_0

    clip: none; keep_eps clamps x0 and keeps the network's eps (diffusers); rederive clamps x0 and recomputes the eps
    that belongs to it (guided-diffusion). `noise` is asked for only where sigma > 0.
    """
    if clip not in CLIPS:
        raise ValueError(f"clip: expected one of {list(CLIPS)}, got {clip!r}")
    for row, (t, ab, ab_p) in enumerate(_walk(schedule, times)):
        out = network(x, torch.full((len(x),), t, device=x.device))[:, : x.shape[1]]
        x0, eps = predictions(x, out, ab, prediction)
        if clip != "none":
            x0 = x0.clamp(*clip_range)
        if ab_p == 1:  # eps and z have no weight
            x = x0
            continue
        if clip == "rederive":
            eps = (x - math.sqrt(ab) * x0) / math.sqrt(1 - ab)
        sigma = eta * math.sqrt((1 - ab_p) / (1 - ab)) * math.sqrt(1 - ab / ab_p)
        x = math.sqrt(ab_p) * x0 + math.sqrt(max(0.0, 1 - ab_p - sigma**2)) * eps
        if sigma > 0:
            if noise is None:
                raise ValueError(f"noise: eta = {eta} needs a noise source")
            x = x + sigma * noise(row)
    return x
