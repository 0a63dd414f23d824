"""Noise schedules, timestep grids, and the forward process of DDPM with its posterior, in float64.

Sources: Ho et al. 2020 (2006.11239), Nichol & Dhariwal 2021 (2102.09672), Rombach et al. 2022 (2112.10752),
Jabri et al. 2022 (2212.11972, sigmoid), Lin et al. 2023 (2305.08891).

| name        | symbol                | meaning                                            |
|-------------|-----------------------|----------------------------------------------------|
| beta        | beta_t                | variance added by step t, in [0, 1]                |
| alpha       | alpha_t = 1 - beta_t  |                                                    |
| alpha_bar   | prod_{s<=t} alpha_s   | share of x_0's variance left in x_t; index 0..T-1  |
| snr         | alpha_bar/(1-alpha_bar) | signal-to-noise ratio of x_t                     |

The papers count t from 1, the code from 0: x_t here is the papers' x_{t+1}, and the x_{-1} before x_0's first noise is
the image itself, with alpha_bar_{-1} = 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

F64 = torch.float64


def linear_betas(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """DDPM section 4: beta from 1e-4 to 0.02, evenly spaced.  -> [T]"""
    return torch.linspace(start, end, T, dtype=F64)


def scaled_linear_betas(T: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Latent diffusion: evenly spaced in sqrt(beta).  -> [T]"""
    return torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=F64) ** 2


def _betas_from_continuous(alpha_bar_at: Callable[[float], float], T: int, max_beta: float = 0.999) -> Tensor:
    """beta_t = min(1 - alpha_bar((t+1)/T) / alpha_bar(t/T), max_beta), Nichol & Dhariwal eq. 17 and the text under it."""
    edges = [alpha_bar_at(i / T) for i in range(T + 1)]
    return torch.tensor([min(1 - edges[i + 1] / edges[i], max_beta) for i in range(T)], dtype=F64)


def cosine_betas(T: int = 1000, s: float = 0.008) -> Tensor:
    """Nichol & Dhariwal eq. 17: alpha_bar(u) = f(u)/f(0), f(u) = cos^2((u + s)/(1 + s) pi/2).  -> [T]"""
    return _betas_from_continuous(lambda u: math.cos((u + s) / (1 + s) * math.pi / 2) ** 2, T)


def sigmoid_betas(T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    """Jabri et al. algorithm 1: alpha_bar falls from 1 to 0 along a sigmoid.  -> [T]"""

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    low, high = sigmoid(start / tau), sigmoid(end / tau)
    return _betas_from_continuous(lambda u: (high - sigmoid((u * (end - start) + start) / tau)) / (high - low), T)


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Lin et al. algorithm 1: shift and scale sqrt(alpha_bar) so that the last is 0 and the first stays.  [T] -> [T]"""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


NAMED = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}
GRIDS = ("leading", "linspace", "trailing")


def timesteps(grid: str, T: int, steps: int) -> list[int]:
    """The visited timesteps of a sampler (Lin et al. table 2), each computed from its own integer index.

    Returns exactly `steps` integers in [0, T), strictly decreasing. ValueError for an unknown grid or steps outside
    1..T.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid: expected one of {list(GRIDS)}, got {grid!r}")
    if not 1 <= steps <= T:
        raise ValueError(f"steps: expected 1..{T}, got {steps}")
    if grid == "leading":
        return [i * (T // steps) for i in reversed(range(steps))]
    if grid == "linspace":
        return [round(i * (T - 1) / max(1, steps - 1)) for i in reversed(range(steps))]
    return [round(T * (steps - i) / steps) - 1 for i in range(steps)]


def _vector(name: str, values: Sequence[float] | Tensor) -> Tensor:
    v = torch.as_tensor(values, dtype=F64)
    if v.ndim != 1 or len(v) == 0 or not bool(torch.isfinite(v).all()):
        raise ValueError(f"{name}: expected a non-empty list of finite numbers, got shape {tuple(v.shape)}")
    return v


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete-time variance-preserving schedule: `alpha_bar` [T] float64 in [0, 1], non-increasing.

    Only the last entry may be 0 (zero terminal SNR). ValueError otherwise. Where an entry is 1 (no noise at all) the
    posterior and the losses are undefined.
    """

    alpha_bar: Tensor

    def __post_init__(self) -> None:
        ab = _vector("alpha_bar", self.alpha_bar)
        object.__setattr__(self, "alpha_bar", ab)
        bad = (ab < 0) | (ab > 1)
        bad[:-1] |= ab[:-1] == 0
        bad[1:] |= ab[1:] > ab[:-1]
        if bad.any():
            k = int(bad.nonzero()[0])
            raise ValueError(
                f"alpha_bar[{k}]: expected values in [0, 1], non-increasing, 0 only at the end, got {float(ab[k])!r}"
            )

    @classmethod
    def make(
        cls,
        name: str = "linear",
        T: int = 1000,
        *,
        betas: Sequence[float] | Tensor | None = None,
        alpha_bar: Sequence[float] | Tensor | None = None,
        zero_terminal: bool = False,
        **kwargs: float,
    ) -> Schedule:
        """A schedule by name (see `NAMED`), or from given `betas` in [0, 1] or `alpha_bar`. ValueError on bad values."""
        if betas is not None and alpha_bar is not None:
            raise ValueError("schedule: expected betas or alpha_bar, got both")
        if alpha_bar is not None:
            ab = _vector("alpha_bar", alpha_bar)
        else:
            if betas is None and name not in NAMED:
                raise ValueError(f"schedule: expected one of {sorted(NAMED)}, got {name!r}")
            if betas is None and T < 1:
                raise ValueError(f"T: expected at least 1, got {T}")
            b = _vector("betas", betas) if betas is not None else NAMED[name](T, **kwargs)
            if bool(((b < 0) | (b > 1)).any()):
                raise ValueError(f"betas: expected values in [0, 1], got {float(b.min())!r} to {float(b.max())!r}")
            ab = torch.cumprod(1 - b, 0)
        return cls(zero_terminal_snr(ab) if zero_terminal else ab)

    def __len__(self) -> int:
        return len(self.alpha_bar)

    @property
    def alpha_bar_previous(self) -> Tensor:
        """alpha_bar_{t-1}, with alpha_bar_{-1} = 1.  [T]"""
        return torch.cat([torch.ones(1, dtype=F64), self.alpha_bar[:-1]])

    @property
    def betas(self) -> Tensor:
        """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}.  [T]"""
        return 1 - self.alpha_bar / self.alpha_bar_previous

    @property
    def snr(self) -> Tensor:
        return self.alpha_bar / (1 - self.alpha_bar)

    @property
    def posterior_variance(self) -> Tensor:
        """beta~_t, DDPM eq. 7; 0 at index 0, where the posterior is the image itself.  [T]"""
        return (1 - self.alpha_bar_previous) / (1 - self.alpha_bar) * self.betas

    @property
    def posterior_log_variance(self) -> Tensor:
        """log beta~_t with index 1 repeated at index 0, whose own value is -inf (Nichol & Dhariwal's code).  [T]"""
        v = self.posterior_variance
        return (torch.cat([v[1:2], v[1:]]) if len(v) > 1 else self.betas).log()

    def _at(self, values: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """values[t] as a column that broadcasts over `like`, in its dtype.  [T], [B] -> [B, 1, ...]"""
        return values.to(like.device)[t].reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)

    def q_step(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """One noising step from x_{t-1} to x_t, DDPM eq. 2.  x [B, ...], t [B] int64 -> like x"""
        beta = self.betas
        return self._at((1 - beta).sqrt(), t, x) * x + self._at(beta.sqrt(), t, x) * eps

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, DDPM eq. 4.  x0 [B, ...], t [B] int64 -> like x0"""
        ab = self.alpha_bar
        return self._at(ab.sqrt(), t, x0) * x0 + self._at((1 - ab).sqrt(), t, x0) * eps

    def predict_x0(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_0 from x_t and its noise: eq. 4 solved for x_0.  [B, ...] -> [B, ...]"""
        ab = self.alpha_bar
        return (x_t - self._at((1 - ab).sqrt(), t, x_t) * eps) / self._at(ab.sqrt(), t, x_t)

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """mu~_t(x_t, x_0), the mean of q(x_{t-1} | x_t, x_0), DDPM eq. 7.  [B, ...] -> [B, ...]"""
        ab, before, beta = self.alpha_bar, self.alpha_bar_previous, self.betas
        on_x0 = before.sqrt() * beta / (1 - ab)
        on_x_t = (1 - beta).sqrt() * (1 - before) / (1 - ab)
        return self._at(on_x0, t, x0) * x0 + self._at(on_x_t, t, x_t) * x_t
