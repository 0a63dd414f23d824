"""What a network's output means: x0 and eps of every parameterisation, and the time that the network is told.

Sources: Ho et al. 2020 (2006.11239) eq. 4 and 7; Salimans & Ho 2022 (2202.00512) for v; Liu et al. 2022 (2209.03003) for flow;
Song et al. 2021 (2011.13456) for scores; Karras et al. 2022 (2206.00364) eq. 7 and table 1; Song et al. 2023 (2303.01469) eq. 5.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from torch import Tensor

from .levels import EDM, VE, Discrete, Level, NoiseModel

Network = Callable[[Tensor, float], Tensor]  # (network input, network time) -> output


def edm_preconditioning(sigma: float, sigma_data: float = 0.5) -> tuple[float, float, float, float]:
    """c_skip, c_out, c_in, c_noise of Karras et al. table 1."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / math.sqrt(total), 1 / math.sqrt(total), math.log(sigma) / 4


def edm_vp_preconditioning(sigma: float, t: float, M: int = 1000) -> tuple[float, float, float, float]:
    """Table 1, VP column: an eps network on the VP schedule, told (M - 1) t."""
    return 1.0, -sigma, 1 / math.sqrt(sigma**2 + 1), (M - 1) * t


def edm_ve_preconditioning(sigma: float) -> tuple[float, float, float, float]:
    """Table 1, VE column."""
    return 1.0, sigma, 1.0, math.log(sigma / 2)


@dataclasses.dataclass
class Denoiser:
    """(x, level) -> (x0, eps), x in the network's own space.

    clip: None, "keep_eps" (x0 is clamped, eps is the network's) or "rederive" (eps of the clamped x0). Networks with a learned
    variance return twice the channels (dimension 0 of one sample): `variance` holds the second half after each call.
    """

    network: Network
    model: NoiseModel
    prediction: str = "eps"
    clip: str | None = None
    clip_range: tuple[float, float] = (-1.0, 1.0)
    time: str | None = None
    time_scale: float = 1.0
    learned: bool = False
    variance: Tensor | None = None
    output: Tensor | None = None

    def _time(self) -> tuple[str, float]:
        if self.time is None and self.prediction in ("edm", "consistency"):
            return "log_sigma", self.time_scale / 4
        if self.time is None:
            return "sigma" if isinstance(self.model, (VE, EDM)) else "t", self.time_scale
        return self.time, self.time_scale

    def told(self, t: float) -> float:
        """The network's time input at the schedule's time t."""
        kind, scale = self._time()
        if kind in ("index", "t"):
            return scale * t
        rel = self.model.at(t).rel
        return scale * {"sigma": rel, "log_sigma": math.log(rel), "log_half_sigma": math.log(rel / 2)}[kind]

    def level_told(self, told: float) -> Level:
        """The level at which the network is told this."""
        kind, scale = self._time()
        if kind in ("index", "t"):
            return self.model.at(told / scale)
        value = told / scale
        return self.model.at_rel(value if kind == "sigma" else math.exp(value) * (2 if kind == "log_half_sigma" else 1))

    def __call__(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        out = self.evaluate(x, level)
        self.output = out
        x0, eps = self._meaning(x, out, level)
        if self.clip is not None:
            x0 = self.limited(x0)
        if self.clip == "rederive":
            eps = (x - level.alpha * x0) / level.sigma
        return x0, eps

    def evaluate(self, x: Tensor, level: Level) -> Tensor:
        c_in = 1 / math.hypot(level.sigma, self.model.sigma_data) if self.prediction in ("edm", "consistency") else 1.0
        out = self.network(c_in * x, self.told(level.t))
        if self.learned:
            out, self.variance = out.chunk(2)
        return out

    def limited(self, x0: Tensor) -> Tensor:
        return x0.clamp(*self.clip_range)

    def _meaning(self, x: Tensor, out: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        a, s = level.alpha, level.sigma
        kind = self.prediction
        if kind == "v":  # v = a eps - s x0 and x = a x0 + s eps, solved
            return (a * x - s * out) / (a**2 + s**2), (s * x + a * out) / (a**2 + s**2)
        if kind == "flow":  # u = eps - x0
            return (x - s * out) / (a + s), (x + a * out) / (a + s)
        if kind in ("eps", "score", "energy", "scaled_score"):
            eps = {"eps": 1.0, "score": -s, "energy": s, "scaled_score": -1.0}[kind] * out
            return (x - s * eps) / a, eps
        if kind == "x0":
            x0 = out
        elif kind == "mean":
            x0 = self._from_mean(x, out, int(level.t))
        elif kind == "edm":
            c_skip, c_out, _, _ = edm_preconditioning(s, self.model.sigma_data)
            x0 = c_skip * x + c_out * out
        elif kind == "consistency":
            d, above = self.model.sigma_data, s - self.model.sigma_min
            x0 = d**2 / (above**2 + d**2) * x + above * d / math.hypot(s, d) * out
        else:
            raise ValueError(f"prediction: unknown {kind!r}")
        return x0, (x - a * x0) / s

    def _from_mean(self, x: Tensor, mean: Tensor, t: int) -> Tensor:
        """Ho et al. eq. 7, solved for x0; index -1 is the image itself."""
        assert isinstance(self.model, Discrete)
        ab = float(self.model.alpha_bar[t])
        before = float(self.model.alpha_bar[t - 1]) if t else 1.0
        beta = 1 - ab / before
        return (mean * (1 - ab) - math.sqrt(ab / before) * (1 - before) * x) / (math.sqrt(before) * beta)


def gaussian(of: Denoiser, mean: float, std: float) -> Network:
    """The exact network of data N(mean, std^2 I), in the parameterisation of `of`.

    E[x0 | x] = (mean sigma^2 + alpha std^2 x) / (alpha^2 std^2 + sigma^2), E[eps | x] = sigma (x - alpha mean) / (the same).
    """

    def network(x: Tensor, told: float) -> Tensor:
        level = of.level_told(told)
        a, s, kind = level.alpha, level.sigma, of.prediction
        if kind in ("edm", "consistency"):
            x = x * math.hypot(s, of.model.sigma_data)
        x0 = (mean * s**2 + a * std**2 * x) / (a**2 * std**2 + s**2)
        eps = s * (x - a * mean) / (a**2 * std**2 + s**2)
        if kind == "mean":
            ab, before = a**2, float(of.model.alpha_bar[int(level.t) - 1]) if level.t else 1.0
            return (math.sqrt(before) * (1 - ab / before) * x0 + math.sqrt(ab / before) * (1 - before) * x) / (1 - ab)
        if kind == "edm":
            c_skip, c_out, _, _ = edm_preconditioning(s, of.model.sigma_data)
            return (x0 - c_skip * x) / c_out
        if kind == "consistency":
            d, above = of.model.sigma_data, s - of.model.sigma_min
            return (x0 - d**2 / (above**2 + d**2) * x) / (above * d / math.hypot(s, d))
        if kind in ("score", "energy"):
            return (-eps if kind == "score" else eps) / s
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "flow": eps - x0, "scaled_score": -eps}[kind]

    return network
