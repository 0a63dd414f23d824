"""Noise schedules and the forward process of DDPM, in float64.

Sources: Ho et al. 2020 (2006.11239), Nichol & Dhariwal 2021 (2102.09672), Rombach et al. 2022 (2112.10752),
Jabri et al. 2022 (2212.11972, sigmoid), Lin et al. 2023 (2305.08891).

| name        | symbol                | meaning                                            |
|-------------|-----------------------|----------------------------------------------------|
| beta        | beta_t                | variance added by step t, in (0, 1)                |
| alpha       | alpha_t = 1 - beta_t  |                                                    |
| alpha_bar   | prod_{s<=t} alpha_s   | share of x_0's variance left in x_t; index 0..T-1  |
| snr         | alpha_bar/(1-alpha_bar) | signal-to-noise ratio of x_t                     |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

F64 = torch.float64


def linear_betas(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """DDPM section 4: beta from 1e-4 to 0.02, evenly spaced.  -> [T]"""
    return torch.linspace(start, end, T, dtype=F64)


def scaled_linear_betas(T: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Latent diffusion: evenly spaced in sqrt(beta).  -> [T]"""
    return torch.linspace(math.sqrt(start), math.sqrt(end), T, dtype=F64) ** 2


def _betas_from_continuous(alpha_bar_at, T: int, max_beta: float = 0.999) -> Tensor:
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


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete-time variance-preserving schedule: `alpha_bar` [T] float64, strictly inside [0, 1], non-increasing."""

    alpha_bar: Tensor

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
        """A schedule by name (see `NAMED`), or from given `betas` or `alpha_bar`."""
        if alpha_bar is not None:
            ab = torch.as_tensor(alpha_bar, dtype=F64)
        else:
            if betas is None and name not in NAMED:
                raise ValueError(f"schedule: expected one of {sorted(NAMED)}, got {name!r}")
            b = torch.as_tensor(betas, dtype=F64) if betas is not None else NAMED[name](T, **kwargs)
            ab = torch.cumprod(1 - b, 0)
        return cls(zero_terminal_snr(ab) if zero_terminal else ab)

    def __len__(self) -> int:
        return len(self.alpha_bar)

    @property
    def betas(self) -> Tensor:
        """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, with alpha_bar_{-1} = 1.  [T]"""
        previous = torch.cat([torch.ones(1, dtype=F64), self.alpha_bar[:-1]])
        return 1 - self.alpha_bar / previous

    @property
    def snr(self) -> Tensor:
        return self.alpha_bar / (1 - self.alpha_bar)

    def _at(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha_bar_t as a column that broadcasts over `like`.  [B] -> [B, 1, ...] float64"""
        return self.alpha_bar.to(like.device)[t].reshape(-1, *[1] * (like.ndim - 1))

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, DDPM eq. 4.  x0 [B, ...], t [B] int64 -> like x0"""
        ab = self._at(t, x0)
        return (ab.sqrt().to(x0.dtype)) * x0 + ((1 - ab).sqrt().to(x0.dtype)) * eps
