"""StepRow version 1 in float64: what every kernel must compute, every flag included.

kernels/step.h is the manual of the row; this is the same text as code, for one sample at a time. Arrays are numpy,
float64, of the sample's own shape (any rank). A row is a record of `ROW` (256 bytes, float32 coefficients, as the engine
has it) or of `ROW64` (the same fields in float64, to check a solver's formulas without the rounding of its table).

Sources of the flags: Imagen (2205.11487) section 2.3 THRESHOLD; Lin et al. (2305.08891) section 3.4 RESCALE; Nichol &
Dhariwal (2102.09672) eq. 15 LEARNED_RANGE; Dhariwal & Nichol (2105.05233) algorithms 1, 2 GRAD; Lugmayr et al.
(2201.09865) eq. 8 BLEND; Song et al. (2011.13456) algorithm 4 NORM; Ho et al. (2006.11239) eq. 5 VLB.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..row import (
    BLEND,
    CLIP,
    GRAD,
    KEEP,
    LAST,
    LEARNED_RANGE,
    LEARNED_VAR,
    NO_EVAL,
    NORM,
    PUSH,
    RESCALE,
    ROW,  # noqa: F401  with ROW64: the rows that `execute` takes
    ROW64,  # noqa: F401
    THRESHOLD,
    VLB,
)

Array = np.ndarray
OPERANDS = ("x", "e", "x0", "h1", "h2", "h3", "y", "z")  # the order of wx; wy stops before z, wh after x0
ALL_FLAGS = (1 << 13) - 1


@dataclasses.dataclass
class State:
    """What a sample carries from row to row: x, up to three history entries newest first, the anchor y."""

    x: Array
    history: tuple[Array, ...] = ()
    anchor: Array | None = None


@dataclasses.dataclass
class Evaluations:
    """What a row is given. cond, uncond, guide: network outputs, [C, ...], or [2C, ...] with a learned-variance flag;
    those not evaluated are None, and with only one of cond and uncond e is that one. The rest [C, ...]: z the row's
    noise, grad the classifier's gradient, mask / known / z_known the picture to keep and its noise, x0_true the data
    whose likelihood VLB takes."""

    cond: Array | None = None
    uncond: Array | None = None
    guide: Array | None = None
    z: Array | None = None
    grad: Array | None = None
    mask: Array | None = None
    known: Array | None = None
    z_known: Array | None = None
    x0_true: Array | None = None


@dataclasses.dataclass
class Result:
    """state after the row; net_input = next row's c_in * x (None with LAST); x0 the preview; kl nats per element."""

    state: State
    net_input: Array | None
    x0: Array
    kl: float | None


def weighted_sum(weights: Array, operands: dict[str, Array | None], shape: tuple[int, ...]) -> Array:
    """sum of weight * operand; an operand of weight exactly 0 is not read, whatever it holds."""
    total = np.zeros(shape)
    for weight, (name, value) in zip(weights, operands.items()):
        if weight != 0:
            if value is None:
                raise ValueError(f"{name}: its weight is {weight}, but the row was not given it")
            total = total + float(weight) * value
    return total


def quantile(values: Array, p: float) -> float:
    """The p-quantile of all elements: exact order statistics, lo + f (hi - lo) between them."""
    ordered = np.sort(values, axis=None)
    at = p * (len(ordered) - 1)
    k = min(int(np.floor(at)), len(ordered) - 1)
    hi = ordered[min(k + 1, len(ordered) - 1)]
    return float(ordered[k] + (at - k) * (hi - ordered[k]))


def guided_output(row: np.void, ev: Evaluations, scale: float, scale2: float) -> tuple[Array, Array | None]:
    """(e, v): the guided noise half, and the raw variance half of the conditional output (of the other without one)."""
    learned = row["flags"] & (LEARNED_VAR | LEARNED_RANGE)

    def halves(out: Array | None) -> tuple[Array | None, Array | None]:
        if out is None or not learned:
            return out, None
        n = out.shape[0] // 2
        return out[:n], out[n:]

    (c, v_c), (u, v_u), (g, _) = halves(ev.cond), halves(ev.uncond), halves(ev.guide)
    if c is None and u is None:
        raise ValueError("evaluations: expected cond or uncond, got neither (a row without either has NO_EVAL)")
    if c is not None and u is not None:
        e = u + (1 + (scale - 1) * float(row["gs"])) * (c - u)
    else:
        e = c if c is not None else u
    if g is not None:
        if c is None:
            raise ValueError("evaluations: guide needs cond")
        e = e + scale2 * (c - g)
    if row["flags"] & RESCALE and c is not None:
        phi = float(row["phi"])
        e = phi * (e * (c.std() / e.std())) + (1 - phi) * e
    if row["flags"] & GRAD and row["ge"] != 0:
        e = e + float(row["ge"]) * ev.grad
    return e, v_c if v_c is not None else v_u


def standard_deviation(row: np.void, v: Array | None) -> Array | None:
    """Of the noise this row adds, where the network chose it; None with a fixed variance (it is in wx[z])."""
    if row["flags"] & LEARNED_VAR:
        return np.exp(v / 2)
    if row["flags"] & LEARNED_RANGE:
        f = (v + 1) / 2
        return np.exp((f * float(row["log_var_hi"]) + (1 - f) * float(row["log_var_lo"])) / 2)
    return None


def clean_prediction(row: np.void, x: Array, e: Array | None) -> Array:
    """x0 = p x + q e, thresholded or clamped. With both flags THRESHOLD alone acts."""
    x0 = weighted_sum([row["p"], row["q"]], {"x": x, "e": e}, x.shape)
    if row["flags"] & THRESHOLD:
        r = min(max(quantile(np.abs(x0), float(row["threshold_p"])), 1.0), float(row["threshold_cap"]))
        return np.clip(x0, -r, r) / r
    if row["flags"] & CLIP:
        return np.clip(x0, float(row["clip_lo"]), float(row["clip_hi"]))
    return x0


def bound_term(row: np.void, x: Array, x0: Array, x0_true: Array, std: Array | None) -> float:
    """KL(q(x_{t-1} | x_t, x0_true) | p), the mean over elements in nats; p's mean is the posterior's at our x0."""
    lq = float(row["lq"])
    lp = 2 * np.log(std) if std is not None else float(row["lp"])
    gap = float(row["v0"]) * (x0_true - x0)  # vx x is in both means
    return float(np.mean(0.5 * (lp - lq + np.exp(lq - lp) - 1 + gap**2 * np.exp(-lp))))


def execute(
    row: np.void,
    next_row: np.void | None,
    state: State,
    ev: Evaluations,
    *,
    scale: float = 1.0,
    scale2: float = 0.0,
) -> Result:
    """One row for one sample. scale s acts where cond and uncond are given, scale2 where guide is.

    With a learned variance the operand z is std * z, so its weight is 1, or 0 where no noise is added. ValueError for
    an unknown flag, or where a weight asks for something that was not given.
    """
    flags = int(row["flags"])
    if flags & ~ALL_FLAGS:
        raise ValueError(f"flags: expected bits 0..12, got {flags:#x}")
    x = state.x
    e, v = (None, None) if flags & NO_EVAL else guided_output(row, ev, scale, scale2)
    std = standard_deviation(row, v) if not flags & NO_EVAL else None
    x0 = clean_prediction(row, x, e)

    z = ev.z if std is None or ev.z is None else std * ev.z
    h = (*state.history, None, None, None)[:3]
    operands = dict(zip(OPERANDS, (x, e, x0, *h, state.anchor, z)))

    wx = np.array(row["wx"], dtype=np.float64)
    if flags & NORM:
        r = float(row["snr"]) * np.linalg.norm(ev.z) / np.linalg.norm(e)
        wx[OPERANDS.index("e")] *= r**2
        wx[OPERANDS.index("z")] *= r
    new_x = weighted_sum(wx, operands, x.shape)
    if flags & GRAD and row["gm"] != 0:
        new_x = new_x + float(row["gm"]) * (std**2 if std is not None else 1.0) * ev.grad
    if flags & BLEND:
        kept = weighted_sum([row["ky"], row["kz"]], {"known": ev.known, "z_known": ev.z_known}, x.shape)
        new_x = ev.mask * kept + (1 - ev.mask) * new_x

    anchor = weighted_sum(row["wy"], operands, x.shape) if flags & KEEP else state.anchor
    history = state.history
    if flags & PUSH:
        history = (weighted_sum(row["wh"], operands, x.shape), *history)[:3]
    return Result(
        state=State(new_x, history, anchor),
        net_input=None if flags & LAST else float(next_row["c_in"]) * new_x,
        x0=x0,
        kl=bound_term(row, x, x0, ev.x0_true, std) if flags & VLB else None,
    )
