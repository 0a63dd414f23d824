"""Noise models, discrete and continuous, and the grids of levels a sampler visits, in float64.

Sources: Song et al. 2021 (2011.13456) eq. 31 to 34; Karras et al. 2022 (2206.00364) eq. 5 and table 1; Liu et al. 2022
(2209.03003); Lin et al. 2023 (2305.08891) table 2; Lu et al. 2022 (2206.00927); Luo et al. 2023 (2310.04378).

| name   | meaning                                                            |
|--------|--------------------------------------------------------------------|
| level  | alpha, sigma, t: x = alpha x0 + sigma eps in the network's space   |
| rel    | sigma / alpha: the level of EDM space, where alpha is 1            |
"""

from __future__ import annotations

import bisect
import dataclasses
import fractions
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Level:
    alpha: float
    sigma: float
    t: float

    @property
    def rel(self) -> float:
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), lambda of the DPM-Solver papers."""
        return (
            math.inf
            if self.sigma == 0
            else -math.inf
            if self.alpha == 0
            else math.log(self.alpha) - math.log(self.sigma)
        )


class NoiseModel:
    """alpha and sigma of a time, and back. `first` is the noisiest time, `last` the least noisy that is visited."""

    first: float
    last: float
    native_unit = False  # alpha is 1 everywhere: variance exploding

    def at(self, t: float) -> Level:
        raise NotImplementedError

    def at_rel(self, rel: float) -> Level:
        """By bisection in log rel, which increases with t."""
        low, high = self.last * 1e-3, self.first
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self.at(middle).rel < rel else (low, middle)
        return self.at((low + high) / 2)


class Discrete(NoiseModel):
    """DDPM eq. 4; between timesteps log rel is linear in t."""

    def __init__(self, alpha_bar: Sequence[float] | np.ndarray) -> None:
        self.alpha_bar = np.asarray(alpha_bar, np.float64)
        self.first, self.last = float(len(self.alpha_bar) - 1), 0.0
        with np.errstate(divide="ignore"):
            self.rels = np.sqrt((1 - self.alpha_bar) / self.alpha_bar)
            self.logs, self.indices = np.log(self.rels), np.arange(float(len(self.rels)))

    def at(self, t: float) -> Level:
        if t == int(t):
            ab = float(self.alpha_bar[int(t)])
            return Level(math.sqrt(ab), math.sqrt(1 - ab), t)
        rel = math.exp(np.interp(t, self.indices, self.logs))
        return Level(1 / math.hypot(1, rel), rel / math.hypot(1, rel), t)

    def at_rel(self, rel: float) -> Level:
        t = float(np.interp(math.log(rel), self.logs, self.indices))
        return Level(1 / math.hypot(1, rel), rel / math.hypot(1, rel), t)

    def nearest(self, rel: float) -> Level:
        return self.at(int(np.abs(self.rels - rel).argmin()))


class VP(NoiseModel):
    """Eq. 33 with beta(t) = beta_min + t (beta_max - beta_min)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> None:
        self.beta, self.first, self.last = (beta_min, beta_max), 1.0, t_min

    def _alpha(self, t: float) -> float:
        integral = self.beta[0] * t + (self.beta[1] - self.beta[0]) * t**2 / 2
        return math.exp(-integral / 2)

    def at(self, t: float) -> Level:
        return Level(self._alpha(t), math.sqrt(1 - self._alpha(t) ** 2), t)


class SubVP(VP):
    """Eq. 34."""

    def at(self, t: float) -> Level:
        return Level(self._alpha(t), 1 - self._alpha(t) ** 2, t)


class VE(NoiseModel):
    """Eq. 31."""

    native_unit = True

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        self.sigmas, self.first, self.last = (sigma_min, sigma_max), 1.0, 0.0

    def at(self, t: float) -> Level:
        low, high = self.sigmas
        return Level(1.0, math.exp((1 - t) * math.log(low) + t * math.log(high)), t)

    def at_rel(self, rel: float) -> Level:
        low, high = map(math.log, self.sigmas)
        return Level(1.0, rel, (math.log(rel) - low) / (high - low))


class Flow(NoiseModel):
    """Rectified flow: x = (1 - t) x0 + t eps."""

    def __init__(self, t_min: float = 1e-3) -> None:
        self.first, self.last = 1.0, t_min

    def at(self, t: float) -> Level:
        return Level(1 - t, t, t)


class EDM(NoiseModel):
    """x = x0 + sigma eps with t = sigma."""

    native_unit = True

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> None:
        self.first, self.last, self.sigma_min, self.sigma_data = sigma_max, sigma_min, sigma_min, sigma_data

    def at(self, t: float) -> Level:
        return Level(1.0, t, t)

    def at_rel(self, rel: float) -> Level:
        return Level(1.0, rel, rel)


CLEAN = Level(1.0, 0.0, 0.0)


def _nearest(ratio: fractions.Fraction) -> int:
    return round(ratio)  # halves to even


def section_timesteps(T: int, counts: Sequence[int]) -> list[int]:
    """Nichol & Dhariwal's timestep_respacing, each timestep from its own index; descending."""
    edges = np.cumsum([0] + [T // len(counts) + (i < T % len(counts)) for i in range(len(counts))])
    times = []
    for start, end, count in zip(edges, edges[1:], counts):
        times += [
            int(start) + _nearest(fractions.Fraction(k * int(end - start - 1), max(1, count - 1))) for k in range(count)
        ]
    return times[::-1]


def integer_timesteps(grid: str, T: int, n: int, *, original: int = 50) -> list[int]:
    """Descending timesteps of a discrete schedule."""
    F = fractions.Fraction
    if grid == "leading":
        return [k * (T // n) for k in range(n)][::-1]
    if grid == "linspace":
        return [_nearest(F(k * (T - 1), max(1, n - 1))) for k in range(n)][::-1]
    if grid == "trailing":
        return [_nearest(F(T * (n - k), n)) - 1 for k in range(n)]
    if grid == "uniform":
        return [_nearest(F(k * (T - 1), n)) for k in range(n, 0, -1)]
    if grid == "lcm":
        taught = [(T // original) * k - 1 for k in range(original, 0, -1)]
        return [taught[k * original // n] for k in range(n)]
    if grid.startswith("ddim"):
        stride = next(s for s in range(1, T + 1) if len(range(0, T, s)) == int(grid[4:]))
        return list(range(0, T, stride))[::-1]
    return section_timesteps(T, [int(c) for c in grid.split(",")])


def karras_sigmas(n: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """EDM eq. 5."""
    ends = high ** (1 / rho), low ** (1 / rho)
    return [(ends[0] + k / max(1, n - 1) * (ends[1] - ends[0])) ** rho for k in range(n)]


def log_sigmas(n: int, low: float, high: float) -> list[float]:
    """Evenly in log sigma, and so in log(alpha / sigma)."""
    return [high * (low / high) ** (k / max(1, n - 1)) for k in range(n)]


def levels(
    model: NoiseModel,
    grid: str,
    n: int,
    *,
    final: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    shift: float = 1.0,
    lambda_min: float = -5.1,
    original: int = 50,
    offset: int = 0,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> list[Level]:
    """n visited levels, strictly less noisy one after the other, and the one where sampling ends ("zero" or "sigma_min")."""
    final = final or ("sigma_min" if grid == "logsnr" else "zero")
    end = CLEAN if final == "zero" else model.at(model.last)
    if timesteps is not None:
        return [*map(model.at, timesteps), end]
    if sigmas is not None:
        return [*map(model.at_rel, sigmas), end]
    if grid in ("karras", "exponential", "logsnr", "edm"):
        low, high = model.at(model.last).rel, model.at(model.first).rel
        if grid == "edm":
            low, high = max(low, 0.002), min(high, 80.0)
        low, high = sigma_min or low, sigma_max or high
        ramp = karras_sigmas(n, low, high, rho) if grid in ("karras", "edm") else log_sigmas(n, low, high)
        if grid == "logsnr":
            ramp = log_sigmas(n + 1, low, high)
            if final == "sigma_min":
                return [model.at_rel(s) for s in ramp]
            ramp = ramp[:-1]
        place = model.nearest if grid == "edm" and isinstance(model, Discrete) else model.at_rel
        return [*map(place, ramp), end]
    if isinstance(model, Discrete):
        T = len(model.alpha_bar)
        if grid == "uniform":
            lambdas = [model.at(t).log_snr for t in range(T)]
            T = max(2, bisect.bisect_right([-v for v in lambdas], -lambda_min)) if T > 1 else T
        return [*(model.at(t + offset) for t in integer_timesteps(grid, T, n, original=original)), end]
    stop = 0.0 if grid == "uniform" and final == "zero" else model.last
    steps = n if grid == "uniform" else max(1, n - 1)
    times = [model.first + (stop - model.first) * k / steps for k in range(n)]
    return [*(model.at(shift * t / (1 + (shift - 1) * t)) if shift != 1 else model.at(t) for t in times), end]
