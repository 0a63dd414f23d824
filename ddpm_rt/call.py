"""One call of `Engine.sample`: what the caller wrote, as what the extension takes."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import arrays, conditions, editing, images, kernels, options
from .backends import disable_telemetry, find_library, tensorrt_libraries
from .errors import OptionError
from .tables import Table, solver_options

MAX_N = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Model:
    """What a call needs to know of the engine's model."""

    name: str
    shape: tuple[int, ...]
    role: str
    range: tuple[float, float]
    class_names: tuple[str, ...]
    device: str = "cpu"  # as info() names it
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prediction: str = "eps"
    conditions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def seeds_of(seeds: Any, n: int) -> np.ndarray | None:
    """-> uint64 [n]"""
    if seeds is None:
        return None
    array = arrays.seeds(seeds)
    if len(array) != n:
        raise OptionError(f"seeds: expected {n}, one per image, got {len(array)}")
    return array


def choice(value: Any, field: str) -> str:
    """One of the table's choices for `field`."""
    if value not in options.choices(field):
        raise OptionError(f"{field}: expected one of {', '.join(options.choices(field))}, got {value!r}")
    return value


def text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{field}: expected a text, got {value!r}")
    return value


def solver_of(sampler: str | Table | None, **solver: Any) -> dict[str, Any]:
    """The arguments that say which rows are run: a name, a table of one's own, or neither; and what it is compiled with."""
    for field in ("clip", "variance", "compat"):
        if solver[field] is not None:
            choice(solver[field], field)
    if isinstance(sampler, Table):
        table = {"rows": sampler.rows.tobytes(), "init_sigma": sampler.init_sigma}
        return {**solver_options(sampler=None, **solver), **table}
    return solver_options(sampler=None if sampler is None else choice(sampler, "sampler"), **solver)


def label_of(value: Any, class_names: Sequence[str], field: str) -> int:
    """A class by number or name; None is -1, unconditional. The engine checks the range."""
    if value is None:
        return -1
    if isinstance(value, str):
        if value in class_names:
            return class_names.index(value)
        near = difflib.get_close_matches(value, class_names, n=3) or list(class_names[:10])
        raise OptionError(
            f"{field}: expected a class name such as {', '.join(near) or '(this plan has none)'}, got {value!r}"
        )
    return arrays.integer(value, field, -(2**63), 2**63 - 1)


def labels_of(labels: Any, n: int, class_names: Sequence[str], field: str = "labels") -> np.ndarray | None:
    """None: drawn from the seeds. One label: repeated. A sequence: n entries.  -> int64 [1 or n]"""
    if labels is None:
        return None
    if hasattr(labels, "tolist"):
        labels = labels.tolist()
    if isinstance(labels, (str, int)) or not hasattr(labels, "__len__"):
        return np.array([label_of(labels, class_names, field)], np.int64)
    if len(labels) != n:
        raise OptionError(f"{field}: expected one label or {n} of them, got {len(labels)}")
    return np.array([label_of(v, class_names, f"{field}[{i}]") for i, v in enumerate(labels)], np.int64)


def guidance(scale: float | None, w: float | None) -> float | None:
    """s of e = u + s (c - u). Ho & Salimans 2207.12598 eq. 6 writes (1 + w) c - w u, so s = 1 + w."""
    if w is None:
        return None if scale is None else arrays.number(scale, "scale")
    if scale is not None:
        raise OptionError("w: expected one of scale and w (scale = 1 + w), got both")
    return 1.0 + arrays.number(w, "w")


def output_kind(output: str | None, model: Model) -> str:
    """The default is uint8 for images and float for the rest."""
    kind = ("uint8" if model.role == "image" else "float") if output is None else choice(output, "output")
    if kind in ("uint8", "pil") and model.role != "image":
        raise OptionError(
            f"output: expected float, torch or dlpack for samples whose role is {model.role!r}, got {kind!r}"
        )
    return kind


def allocate(n: int, model: Model, kind: str) -> tuple[Any, Any]:
    """The array that the engine writes, uint8 [n, H, W, C] or float32 [n, *shape], and what the extension takes for it."""
    if kind == "torch" and model.device != "cpu":
        from . import torch_denoiser

        return torch_denoiser.output(n, model.shape, model.device)
    if kind in ("uint8", "pil"):
        channels, height, width = model.shape
        shape, dtype = (n, height, width, channels), np.dtype(np.uint8)
    else:
        shape, dtype = (n, *model.shape), np.dtype(np.float32)
    wanted = dtype.itemsize * int(np.prod(shape, dtype=object))
    try:
        if wanted > physical_memory():
            raise MemoryError
        out = np.empty(shape, dtype)
        return out, out
    except MemoryError:
        raise OptionError(
            f"n: expected an output that fits in memory, got {n} samples of {wanted / n:.0f} bytes"
        ) from None


def physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**63


def initial(value: Any, field: str, n: int, model: Model) -> np.ndarray | None:
    return None if value is None else arrays.float32(value, field, (n, *model.shape))


_SOLVER = (
    "steps", "eta", "clip", "variance", "grid", "compat", "sampler_options", "guidance_rescale", "guidance_interval", "threshold",
    "classifier_scale",
)  # fmt: skip


def arguments_of(given: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The options of `Engine.sample` by name -> what the extension reads; None: not given."""
    n = arrays.integer(given["n"], "n", 1, MAX_N)
    seed, negative = given["seed"], given["negative"]
    labels, others = (None, negative) if isinstance(negative, Mapping) else (negative, None)
    return {
        "n": n,
        "labels": labels_of(given["labels"], n, model.class_names),
        "scale": guidance(given["scale"], given["w"]),
        **solver_of(given["sampler"], **{name: given[name] for name in _SOLVER}),
        "negative": labels_of(labels, n, model.class_names, "negative"),
        "conditions": conditions.of_call(given["cond"], "cond", n, model.conditions),
        "negative_conditions": conditions.of_call(others, "negative", n, model.conditions),
        "seed": None if seed is None else arrays.integer(seed, "seed", 0, 2**64 - 1),
        "seeds": seeds_of(given["seeds"], n),
        "latents": initial(given["latents"], "latents", n, model),
        "x_init": initial(given["x_init"], "x_init", n, model),
        **editing.arguments(given, n, model),
        "keep_nonfinite": choice(given["on_error"], "on_error") == "keep",
    }


def provenance(
    result: Mapping[str, Any], info: Mapping[str, Any], model: Model, sampler: Any, scale: float | None
) -> images.Provenance:
    """What came of a request, for its images to carry."""
    defaults = info["defaults"]
    return images.Provenance(
        labels=result["labels"],
        seeds=result["seeds"],
        nfe=result["nfe"],
        seconds=result["seconds"],
        fingerprint=info["fingerprint"],
        bad=tuple(result["bad"]),
        settings={
            "plan": model.name,
            "sampler": str(sampler or defaults["sampler"]),
            "steps": result["steps"],
            "scale": defaults["scale"] if scale is None else scale,
            "backend": info["backend"],
            "precision": info["precision"],
        },
        range=model.range,
        role=model.role,
        x0=result["x0"].reshape(len(result["seeds"]), -1, *model.shape) if result["x0"].size else None,
    )


def checked_callback(callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if callback is not None and not callable(callback):
        raise OptionError(f"callback: expected a function of (row, rows, x0), got {type(callback).__name__}")
    return callback


def callable_model(
    schedule: Any,
    shape: Sequence[int],
    *,
    name: str,
    prediction: str,
    num_classes: int | None,
    class_names: Sequence[str] | None,
    role: str | None,
    data_range: Sequence[float],
    time: str | None,
    time_scale: float,
    defaults: Mapping[str, Any] | None,
    variance: str = "fixed",
    classifier: bool = False,
) -> tuple[str, np.ndarray]:
    """The part of a plan's manifest that an engine over a callable needs, as JSON, and alpha_bar. The engine checks the values."""
    if isinstance(shape, (str, bytes)) or not hasattr(shape, "__iter__"):
        raise OptionError(f"shape: expected 1 to 4 integers, got {shape!r}")
    alpha_bar, continuous = kernels.noise_model(schedule)
    dims = [arrays.integer(d, f"shape[{i}]", 1, 2**31 - 1) for i, d in enumerate(shape)]
    manifest: dict[str, Any] = {
        "name": name,
        "sample": {"shape": dims, "range": [arrays.number(v, "data_range") for v in data_range]},
        "prediction": prediction,
        "variance": variance,
        "classifier": bool(classifier),
        "time": {"type": time, "scale": arrays.number(time_scale, "time_scale")},
        "num_classes": 0 if num_classes is None else arrays.integer(num_classes, "num_classes", 0, 2**31 - 1),
    }
    if continuous is not None:
        manifest["schedule"] = dict(continuous)
    if role is not None:
        manifest["sample"]["role"] = role
    if class_names is not None:
        manifest["class_names"] = list(class_names)
        if num_classes is None:
            manifest["num_classes"] = len(class_names)
    if defaults:
        manifest["defaults"] = dict(defaults)
    try:
        text = json.dumps(manifest, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise OptionError(f"defaults: expected texts and finite numbers, got {manifest.get('defaults')!r}") from e
    return text, alpha_bar


def settled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """A call's settings over the plan's, as the engine takes them; None where no project's conventions are in force."""
    sampler, compat = given.get("sampler"), given.get("compat")
    if isinstance(sampler, Table) or not (compat or defaults.get("compat")):
        return None
    is_own = compat is None and sampler in (None, defaults["sampler"])
    base = dict(defaults) if is_own else {"sampler": defaults["sampler"]}
    options = {**(base.get("sampler_options") or {}), **dict(given.get("sampler_options") or {})}
    merged = base | {k: v for k, v in given.items() if v is not None} | {"sampler_options": options}
    return merged if merged.get("compat") else None


def warn_of_defects(given: Mapping[str, Any], model: Model, warned: set[str], depth: int) -> None:
    """One warning for each defect of a project in compat that this call meets and `warned`, the engine's own, does not hold."""
    settings = settled(given, model.defaults)
    if settings is None:
        return
    from . import defects

    for text in defects.found(settings, model.schedule, model.prediction):
        if text not in warned:
            warned.add(text)
            warnings.warn(f"reproduced: {text}", UserWarning, stacklevel=depth + 1)


def expect_own_schedule(schedule: Any, prediction: str, variance: str, time: str | None, time_scale: float) -> None:
    """Nothing beside `scheduler=` that it says itself."""
    given = {
        "schedule": not (isinstance(schedule, str) and schedule == "linear"),
        "prediction": prediction != "eps",
        "variance": variance != "fixed",
        "time": time is not None,
        "time_scale": time_scale != 1,
    }
    for name, is_given in given.items():
        if is_given:
            raise OptionError(f"{name}: expected it unset beside scheduler, which has its own, got a value")


def output_shape(shape: Sequence[int], variance: str, classifier: bool) -> tuple[int, ...]:
    """Of one output of the network: its first axis holds prediction, learned variance and classifier's gradient."""
    if not shape:
        return ()  # the engine refuses it
    return (shape[0] * (1 + (variance != "fixed") + bool(classifier)), *shape[1:])


def engine_options(
    device: str,
    backend: str,
    precision: str,
    threads: int | None,
    max_batch: int | None,
    batch_invariant: bool | None,
    cache_dir: str | os.PathLike[str] | None,
    cuda_library: str | os.PathLike[str] | None,
    tensorrt_library: str | os.PathLike[str] | None = None,
    trust_native: bool = False,
) -> dict[str, Any]:
    """What is not None, by the names of `ddpm_rt_engine_options`."""
    disable_telemetry()
    if tensorrt_library is None and device != "cpu" and backend in ("auto", "tensorrt"):
        tensorrt_library = ":".join(str(found.path) for found in tensorrt_libraries()) or None
    given = {
        "device": text(device, "device"),
        "backend": choice(backend, "backend"),
        "precision": choice(precision, "precision"),
        "threads": None if threads is None else arrays.integer(threads, "threads", 1, 2**31 - 1),
        "max_batch": None if max_batch is None else arrays.integer(max_batch, "max_batch", 1, 2**31 - 1),
        "batch_invariant": None if batch_invariant is None else bool(batch_invariant),
        "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
        "openvino_library": find_library("openvino"),
        "onnxruntime_library": find_library("onnxruntime"),
        "cuda_library": None if cuda_library is None else os.fspath(cuda_library),
        "tensorrt_library": None if tensorrt_library is None else os.fspath(tensorrt_library),
        "trust_native": trust_native,
    }
    return {name: value for name, value in given.items() if value is not None}
