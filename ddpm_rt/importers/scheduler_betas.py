"""alpha_bar as diffusers' schedulers have it: betas and their products in float32, rounding by rounding (diffusers 0.42)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import OptionError

_F32 = np.float32


def linspace(start: float, end: float, T: int) -> np.ndarray:
    """torch.linspace in float32: each half from its own end, product and sum rounded once.  -> [T]"""
    low, high = _F32(start), _F32(end)
    step = np.float64(_F32((high - low) / _F32(max(1, T - 1))))
    i = np.arange(T)
    return np.where(i < T // 2, np.float64(low) + step * i, np.float64(high) - step * (T - 1 - i)).astype(_F32)


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _exp(t: float) -> float:
    return math.exp(t * -12.0)


def _laplace(t: float) -> float:
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def _of_alpha_bar(alpha_bar: Callable[[float], float], T: int) -> np.ndarray:
    return np.array([min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), 0.999) for i in range(T)], _F32)


def betas(name: str, start: float, end: float, T: int) -> np.ndarray:
    """float32 [T]. OptionError for a name that no scheduler has."""
    if name == "linear":
        return linspace(start, end, T)
    if name == "scaled_linear":
        return linspace(start**0.5, end**0.5, T) ** 2
    if name == "sigmoid":
        ramp = linspace(-6, 6, T).astype(np.float64)
        return (1 / (1 + np.exp(-ramp))).astype(_F32) * _F32(end - start) + _F32(start)
    curves = {"squaredcos_cap_v2": _cosine, "exp": _exp, "laplace": _laplace}
    if name not in curves:
        known = ", ".join(["linear", "scaled_linear", "sigmoid", *curves])
        raise OptionError(f"scheduler.beta_schedule: expected one of {known}, got {name!r}")
    return _of_alpha_bar(curves[name], T)


def _product(alphas: np.ndarray) -> np.ndarray:
    return np.cumprod(alphas.astype(np.float64)).astype(_F32)  # torch accumulates in float64 and rounds every product


def zero_terminal_snr(values: np.ndarray) -> np.ndarray:
    """Lin et al. 2305.08891 algorithm 1, on betas: the last alpha_bar is 0, the first stays."""
    root = np.sqrt(_product(_F32(1) - values))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    alpha_bar = root**2
    with np.errstate(invalid="ignore", divide="ignore"):
        alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return _F32(1) - alphas


def alpha_bar_of(values: np.ndarray) -> np.ndarray:
    """float64 [T], each value exactly the scheduler's float32 one."""
    return _product(_F32(1) - values.astype(_F32)).astype(np.float64)
