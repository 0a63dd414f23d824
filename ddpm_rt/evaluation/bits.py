"""Bits per dimension of held-out digits: the variational bound and the probability flow."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from ..errors import OptionError
from ..training.data import mnist5k, padded

BOUNDS = ("fixed_small", "fixed_large")


def held_out_bits(engine: Any, n: int, seed: int, steps: int | None, conditional: bool) -> dict[str, Any]:
    """Means over n digits, spread over the ten classes; each with the standard error of its mean. Labels are the
    digits' own."""
    held = mnist5k("held_out")
    if n > len(held):
        raise OptionError(f"n-bits: expected at most the {len(held)} held-out digits, got {n}")
    _, height, width = engine.info()["shape"]
    chosen = np.arange(n) * len(held) // n
    images = padded(held, height, width).images[chosen]
    labels = held.labels[chosen] if conditional else None
    result: dict[str, Any] = {"n": n, "seeds": [seed, seed + n - 1]}
    for variance in BOUNDS:
        start = time.monotonic()
        bound = engine.bits_per_dim(images, labels=labels, seed=seed, steps=steps, variance=variance)
        middle = bound.terms[:, 1:].sum(1)
        result[variance] = _mean("total", bound.total) | {
            "prior": float(bound.prior.mean()),
            "middle": float(middle.mean()),
            "decoder": float(bound.decoder.mean()),
            "steps": len(bound.timesteps),
            "seconds": round(time.monotonic() - start, 1),
        }
    start = time.monotonic()
    flow = engine.bits_per_dim(images, labels=labels, seed=seed, method="ode")
    result["flow"] = _mean("total", flow.total) | {"nfe": flow.nfe, "seconds": round(time.monotonic() - start, 1)}
    return result


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    return {name: float(values.mean()), "standard_error": float(values.std(ddof=1) / math.sqrt(len(values)))}


def render(found: dict[str, Any]) -> list[str]:
    lines = []
    for variance in BOUNDS:
        b = found[variance]
        lines.append(
            f"variational bound, {variance}: {b['total']:.3f} +- {b['standard_error']:.3f} bits/dim of {found['n']} held-out digits "
            f"(L_T {b['prior']:.2g}, L_1..L_{b['steps'] - 1} {b['middle']:.3f}, L_0 {b['decoder']:.3f}), {b['seconds']} s"
        )
    f = found["flow"]
    lines.append(
        f"probability flow: {f['total']:.3f} +- {f['standard_error']:.3f} bits/dim, {f['nfe']} evaluations an image, {f['seconds']} s"
    )
    return lines
