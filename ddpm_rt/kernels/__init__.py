"""The fused kernels and the tables they execute, for a sampling loop of your own (examples/own_loop.py).

Arrays are numpy or any DLPack tensor, in CPU memory or all on one CUDA device: float32, C-contiguous, [n, ...] with the batch
first. On a GPU (libddpm_rt_cuda; docs/gpu.md) network outputs may be float16 or bfloat16, and channels-last; work goes to
`stream` and nothing is waited for, so a call is no part of a CUDA graph that is being captured.

Notation: x state, e guided network output, eps network output, z noise; guidance is e = u + s (c - u) (Ho & Salimans
2207.12598 eq. 6 with s = 1 + w). A row of a table is one network evaluation of one sample: see `ddpm_rt.row.ROW` and kernels/step.h.

`ddpm_rt.kernels.triton` has the same for torch tensors on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..arrays import consecutive_seeds, float32, integer, like, number, seeds
from ..errors import OptionError, ShapeError
from ..row import BLEND, GRAD, KEEP, LEARNED_RANGE, LEARNED_VAR, NO_EVAL, PUSH, ROW, ROW64, VLB
from ..tables import solver_options
from . import _device

if TYPE_CHECKING:
    from . import triton as triton

_seeds = seeds


def __getattr__(name: str) -> object:
    if name != "triton":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return importlib.import_module(".triton", __name__)


def noise(seed: int, index: int, shape: int | Sequence[int], stream: int = 0) -> np.ndarray:
    """Exactly the normals that the engine draws: float32 `shape`.

    Philox4x32-10 under `seed` (0 to 2^64 - 1) with the counter (element / 4, index, stream, 0). stream 0 is x_T, with index 0;
    stream 1 is the noise of row `index` of a table.
    """
    out = np.empty(shape, np.float32)
    _core.noise(
        integer(seed, "seed", 0, 2**64 - 1),
        integer(index, "index", 0, 2**32 - 1),
        integer(stream, "stream", 0, 2**32 - 1),
        out,
    )
    return out


def alpha_bar(schedule: str | Sequence[float] | Mapping[str, Any] = "linear") -> np.ndarray:
    """alpha_bar [T] float64 of a name ("linear", "scaled_linear", "cosine", "sigmoid": T = 1000), of betas, or of a mapping.

    A mapping has `name` and `T`, or `betas`, or `alpha_bar`.
    """
    if isinstance(schedule, str):
        return _core.alpha_bar(schedule, 1000)
    if isinstance(schedule, Mapping):
        known = ({"name", "T"}, {"name"}, {"betas"}, {"alpha_bar"})
        if set(schedule) not in known:
            raise OptionError(f"schedule: expected the keys name and T, or betas, or alpha_bar, got {sorted(schedule)}")
        if "name" in schedule:
            return _core.alpha_bar(str(schedule["name"]), integer(schedule.get("T", 1000), "schedule.T", 1, 10_000_000))
        if "alpha_bar" in schedule:
            return _float64(schedule["alpha_bar"], "schedule.alpha_bar")
        schedule = schedule["betas"]
    betas = _float64(schedule, "schedule.betas")
    if not ((betas > 0) & (betas <= 1)).all():
        raise OptionError(f"schedule.betas: expected values in (0, 1], got {betas.min()} to {betas.max()}")
    return np.cumprod(1 - betas)


def _float64(values: Any, field: str) -> np.ndarray:
    try:
        array = np.ascontiguousarray(np.asarray(values), np.float64)
    except (TypeError, ValueError) as e:
        raise OptionError(f"{field}: expected numbers, got {type(values).__name__}") from e
    if array.ndim != 1 or array.size == 0:
        raise ShapeError(f"{field}: expected one or more numbers in one dimension, got shape {list(array.shape)}")
    return array


#: Noise models in continuous time, and the numbers each takes in a schedule mapping.
CONTINUOUS = {
    "vp": ("beta_min", "beta_max", "t_min"),
    "sub_vp": ("beta_min", "beta_max", "t_min"),
    "ve": ("sigma_min", "sigma_max"),
    "flow": ("t_min",),
    "edm": ("sigma_min", "sigma_max", "sigma_data"),
}


def noise_model(schedule: str | Sequence[float] | Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any] | None]:
    """(alpha_bar [T], None) of a discrete schedule, or (empty, manifest entry) of one in continuous time.

    Continuous: "vp", "sub_vp", "ve" (Song et al. 2011.13456), "flow", "edm" (Karras et al. 2206.00364), or a mapping with that
    `name` and some of `CONTINUOUS[name]`.
    """
    name = schedule if isinstance(schedule, str) else schedule.get("name") if isinstance(schedule, Mapping) else None
    if name not in CONTINUOUS:
        return alpha_bar(schedule), None
    given = {} if isinstance(schedule, str) else {k: v for k, v in schedule.items() if k != "name"}
    unknown = sorted(set(given) - set(CONTINUOUS[name]))
    if unknown:
        raise OptionError(f"schedule: expected among {', '.join(CONTINUOUS[name])} for {name}, got {unknown}")
    return np.empty(0), {"kind": name, **{k: number(v, f"schedule.{k}") for k, v in given.items()}}


def rows(
    sampler: str = "ddim",
    steps: int | None = None,
    schedule: str | Sequence[float] | Mapping[str, Any] = "linear",
    *,
    prediction: str = "eps",
    eta: float | None = None,
    clip: str | None = None,
    variance: str | None = None,
    grid: str | None = None,
    compat: str | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    guidance_rescale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    threshold: tuple[float, float] | None = None,
    classifier_scale: float | None = None,
    time: str | None = None,
    time_scale: float = 1.0,
    network_variance: str = "fixed",
    exact: bool = False,
) -> np.ndarray:
    """The table that a sampler compiles to: a structured array [rows] of `ddpm_rt.row.ROW`, what the engine itself executes.

    The last row has the LAST flag. `row["t"]` is the network's time input. Omitted options are the sampler's own defaults,
    or those of the project in `compat`. The array's first scale is `initial_sigma` with the same arguments.

    Args:
        schedule: a name, betas [T], {"name", "T"}, {"betas"}, {"alpha_bar"}; continuous: see `noise_model`.
        prediction: "eps", "x0", "v", "flow", "score", "scaled_score", "energy", "mean", "edm" or "consistency".
        sampler_options: of the sampler and its grid; `ddpm_rt.samplers()` and `ddpm_rt.grids()` list them.
        guidance_rescale, guidance_interval, threshold, classifier_scale: as in `Engine.sample`; docs/guidance.md.
        time: what the network is told: "index" or "t" (the schedule's own), "sigma", "log_sigma", "log_half_sigma"; None: as
            the schedule has it. Multiplied by time_scale.
        network_variance: "fixed", or "learned", "learned_range" for networks with twice the channels.
        exact: float64 fields (dtype `ddpm_rt.row.ROW64`), before the one rounding to float32.

    Raises:
        OptionError: unknown names, values out of range, and combinations that make no sense; the message says why.
    """
    data, _ = _compiled(**locals())
    return np.frombuffer(data, ROW).copy() if not exact else _exact(data)


def initial_sigma(
    sampler: str = "ddim", steps: int | None = None, schedule: Any = "linear", **options: Any
) -> float:
    """x_T = initial_sigma * unit noise, for the table that `rows` gives with the same arguments."""
    defaults = rows.__kwdefaults__
    for name in options:
        if name not in defaults:
            raise OptionError(f"{name}: expected an option of rows, got an unknown name")
    return _compiled(sampler=sampler, steps=steps, schedule=schedule, **{**defaults, **options, "exact": True})[1]


def _compiled(
    *,
    schedule: Any,
    prediction: str,
    time: str | None,
    time_scale: float,
    network_variance: str,
    exact: bool,
    **solver: Any,
) -> tuple[bytes, float]:
    values, continuous = noise_model(schedule)
    model: dict[str, Any] = {
        "prediction": prediction,
        "variance": network_variance,
        "time": {"type": time, "scale": number(time_scale, "time_scale")},
    }
    if continuous is not None:
        model["schedule"] = continuous
    return _core.rows(values, json.dumps(model), solver_options(**solver), exact)


def _exact(data: bytes) -> np.ndarray:
    """42 numbers a row, in the order of `ROW`, as `ROW64`."""
    numbers = np.frombuffer(data, np.float64).reshape(-1, 42)
    table = np.zeros(len(numbers), ROW64)
    at = 0
    for name in ROW64.names[:-1]:  # spare words stay zero
        width = int(np.prod(ROW64[name].shape, dtype=int))
        table[name] = numbers[:, at] if ROW64[name].shape == () else numbers[:, at : at + width]
        at += width
    return table


class State:
    """What a solver carries from row to row beside x, for `x` [n, ...]: needed where a row has the PUSH, KEEP or VLB flag.

    `history` [3, n, ...] is a ring, newest at `ring`; `anchor` [n, ...]; `input` [n, ...] is the next network input
    (c_in x of the next row, after each step); `x0` [n, ...] the last prediction of the clean sample; `kl` [n] float64 the
    last VLB row's term of the variational bound, nats per element. On the GPU of x they are arrays of its framework; zeros:
    (shape, dtype's name) -> zeros, for frameworks that are neither torch nor have `__array_namespace__`.
    """

    def __init__(self, x: Any, zeros: Callable[[Sequence[int], str], Any] | None = None) -> None:
        if _device.is_on_gpu(x):
            shape, make = tuple(x.shape), zeros or _device.zeros_beside(x)
        else:
            shape, make = float32(x, "x").shape, np.zeros
        self.history = make((3, *shape), "float32")
        self.anchor, self.input, self.x0 = (make(shape, "float32") for _ in range(3))
        self.kl = make(shape[:1], "float64")
        self.ring = 0


# The operand without which a row with one of these flags cannot run.
_NEEDED = ((LEARNED_VAR | LEARNED_RANGE, "variance"), (GRAD, "grad"), (BLEND, "mask"), (VLB, "x0_true"))


def step(
    x: Any,
    eps: Any,
    rows: np.ndarray,
    *,
    eps_uncond: Any = None,
    scale: float = 1.0,
    seeds: int | Sequence[int],
    index: int = 0,
    state: State | None = None,
    out: Any = None,
    eps_guide: Any = None,
    scale2: float = 0.0,
    variance: Any = None,
    grad: Any = None,
    known: Any = None,
    mask: Any = None,
    x0_true: Any = None,
    stream: int | None = None,
    cuda_library: str | None = None,
) -> Any:
    """Executes `rows[index]`: guidance, x0, clip, update and noise in one pass over memory.

    Args:
        x: the state [n, ...] float32; updated in place unless `out` is given.
        eps: the network's output for x at `rows[index]["t"]`, [n, ...].
        eps_uncond: with the null condition; guidance with `scale` s is then u + s (c - u).
        seeds: one per sample, or one integer (sample i uses seed + i mod 2^64).
        state: a `State`, for tables that push, keep or take the variational bound (VLB: into `state.kl`).
        out: receives the new state; may be x.
        eps_guide: a second network's output; the guided e then gains scale2 (eps - eps_guide) (autoguidance 2406.02507).
        variance: the raw half of the network's output that LEARNED_VAR and LEARNED_RANGE rows read (of `eps`, or of
            `eps_uncond` where the row uses that one alone).
        grad: the classifier's d log p(y | x) / dx, for GRAD rows.
        known, mask: BLEND rows keep the clean picture `known` where `mask` is 1.
        x0_true: the data, for VLB rows. All of these [n, ...].
        stream: on a GPU, the CUDA stream to work on, as an integer; None: the current one of torch or CuPy, else the legacy
            default stream.
        cuda_library: as of `Engine`.

    Returns:
        `out`, or x.

    Raises:
        ShapeError, OptionError, DeviceError: before anything is written.
    """
    table = np.ascontiguousarray(rows)
    if table.dtype != ROW or table.ndim != 1:
        raise ShapeError(f"rows: expected a table of ROW as from ddpm_rt.rows(), got {table.dtype} {list(table.shape)}")
    index = integer(index, "index", 0, len(table) - 1)
    flags = int(table["flags"][index])
    if state is None and flags & (PUSH | KEEP | VLB):
        raise OptionError("state: expected a kernels.State for a table that keeps history or takes VLB, got None")
    if np.ndim(seeds) == 0:
        keys = consecutive_seeds(integer(seeds, "seeds", 0, 2**64 - 1), _count(x))
    else:
        keys = _seeds(seeds)
    s, s2 = number(scale, "scale"), number(scale2, "scale2")
    rare = {"eps_guide": eps_guide, "variance": variance, "grad": grad, "known": known, "mask": mask, "x0_true": x0_true}
    for flag, name in _NEEDED:
        if flags & flag and not (flags & NO_EVAL and name == "variance") and rare[name] is None:
            raise OptionError(f"{name}: expected an array for a row with this flag, got None")
    if _device.is_on_gpu(x):
        outputs = {"eps": eps, "eps_uncond": eps_uncond, **{k: rare.pop(k) for k in ("eps_guide", "variance", "grad")}}
        _device.step(
            x, out, outputs, rare, state, rows=table, index=index, scale=s, scale2=s2, seeds=keys, stream=stream, library=cuda_library
        )
    else:
        _step_on_cpu(x, eps, eps_uncond, rare, state, out, table, index, s, s2, keys)
    if state is not None and flags & PUSH:
        state.ring = (state.ring + 2) % 3
    return x if out is None else out


def _count(x: Any) -> int:
    """Samples of x [n, ...]; 0 for what is no tensor, which is refused where it is read."""
    shape = getattr(x, "shape", ())
    return int(shape[0]) if len(shape) > 0 else 0


def _step_on_cpu(
    x: Any, eps: Any, eps_uncond: Any, rare: dict[str, Any], state: State | None, out: Any, table: np.ndarray, index: int, s: float,
    s2: float, keys: np.ndarray,
) -> None:  # fmt: skip
    target = float32(x if out is None else out, "x" if out is None else "out", writable=True)
    source = target if out is None else float32(x, "x", target.shape)
    if target.ndim < 2:
        raise ShapeError(f"x: expected [n, ...], got {list(target.shape)}")
    cond = float32(eps, "eps", target.shape)
    uncond = None if eps_uncond is None else float32(eps_uncond, "eps_uncond", target.shape)
    if len(keys) != len(target):
        raise ShapeError(f"seeds: expected {len(target)}, got {len(keys)}")
    if state is not None and state.anchor.shape != target.shape:
        raise ShapeError(f"state: expected one made for {list(target.shape)}, got {list(state.anchor.shape)}")
    rare = {name: float32(value, name, target.shape) for name, value in rare.items() if value is not None}
    for name, array in (("eps", cond), ("eps_uncond", uncond), *rare.items()):
        if array is not None and np.may_share_memory(array, target):
            raise OptionError(f"{name}: expected memory of its own, got some of the output's")
    if source is not target:
        target[...] = source
    rare["guide"] = rare.pop("eps_guide", None)
    rare["scale2"] = s2
    if state is None:
        _core.step(target, cond, uncond, table, index, s, keys, None, 0, None, None, None, **rare)
    else:
        kept = (state.history, state.ring, state.anchor, state.input, state.x0)
        _core.step(target, cond, uncond, table, index, s, keys, *kept, kl=state.kl, **rare)


def cfg_combine(
    cond: Any, uncond: Any, scale: float | Sequence[float], *, rescale: float = 0.0, out: Any = None,
    stream: int | None = None, cuda_library: str | None = None,
) -> Any:  # fmt: skip
    """Classifier-free guidance by itself: u + s (c - u), [n, ...] float32; on a GPU float16 and bfloat16 too.

    Args:
        scale: s, one number or one per sample.
        rescale: phi of Lin et al. 2305.08891 section 3.4, 0 to 1: mixes in the result with the standard deviation of `cond`.
        out: receives the result; may be `cond` or `uncond`. None: a new array in the framework of `cond`.
        stream, cuda_library: as of `step`.
    """
    values = [number(v, "scale") for v in np.atleast_1d(np.asarray(scale))]
    phi = number(rescale, "rescale")
    if not 0 <= phi <= 1:
        raise OptionError(f"rescale: expected 0 to 1, got {rescale!r}")
    if _device.is_on_gpu(cond):
        return _device.cfg_combine(cond, uncond, np.array(values, np.float32), phi, out, stream, cuda_library)
    c = float32(cond, "cond")
    if c.ndim < 2:
        raise ShapeError(f"cond: expected [n, ...], got {list(c.shape)}")
    u = float32(uncond, "uncond", c.shape)
    if len(values) not in (1, len(c)):
        raise ShapeError(f"scale: expected 1 or {len(c)} numbers, got {len(values)}")
    scales = np.broadcast_to(np.array(values, np.float32), len(c)).copy()
    target = np.empty_like(c) if out is None else float32(out, "out", c.shape, writable=True)
    _core.cfg_combine(c, u, scales, phi, target)
    return like(target, cond) if out is None else out
