"""Rows executed by hand, for tests: in float32 by the engine's kernel, in float64 by the reference executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import ddpm_rt
from ddpm_rt import kernels
from ddpm_rt.reference.step import Evaluations, State, execute
from ddpm_rt.row import NO_EVAL

Network = Callable[[np.ndarray, float], np.ndarray]  # (x, t) -> the output, as x is


def float32(rows: np.ndarray, x: np.ndarray, network: Network, seed: int = 0) -> np.ndarray:
    """x [n, ...] float32, already scaled; the noise of sample i is that of seed + i.  -> the last state, and the peak |x|"""
    x, state, peak = x.copy(), kernels.State(x), float(np.abs(x).max())
    state.input[...] = rows[0]["c_in"] * x
    for i, row in enumerate(rows):
        out = np.zeros_like(x) if row["flags"] & NO_EVAL else network(state.input.copy(), float(row["t"]))
        kernels.step(x, np.ascontiguousarray(out, np.float32), rows, seeds=seed, index=i, state=state)
        peak = max(peak, float(np.abs(x).max()))
    float32.peak = peak
    return x


def float64(rows: np.ndarray, x: np.ndarray, network: Network, noise: Callable[[int], np.ndarray]) -> np.ndarray:
    """One sample x of any shape; `noise(i)` is row i's z.  -> the last state"""
    state, peak = State(x.astype(np.float64)), float(np.abs(x).max())
    for i, row in enumerate(rows):
        following = rows[i + 1] if i + 1 < len(rows) else None
        out = None if row["flags"] & NO_EVAL else network(float(row["c_in"]) * state.x, float(row["t"]))
        state = execute(row, following, state, Evaluations(cond=out, z=noise(i))).state
        peak = max(peak, float(np.abs(state.x).max()))
    float64.peak = peak
    return state.x


def engine_noise(seed: int, shape: tuple[int, ...]) -> Callable[[int], np.ndarray]:
    """What the engine adds in row i to samples seed, seed + 1, ...: float32 [n, ...]"""
    return lambda row: np.stack([ddpm_rt.noise(seed + i, row, shape[1:], 1) for i in range(shape[0])])


def rows_of(**options: Any) -> tuple[np.ndarray, float]:
    """(rows, initial sigma)"""
    scale = {k: v for k, v in options.items() if k != "exact"}
    return ddpm_rt.rows(**options), kernels.initial_sigma(**scale)
