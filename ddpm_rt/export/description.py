"""What a plan says of a model beside its networks, and the manifest (version 1, docs/plan_format.md) made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _core, kernels
from ..errors import OptionError

ROLES, PREDICTIONS, WEIGHTS = ("image", "latent", "vector"), ("eps", "x0", "v", "flow", "score", "scaled_score", "energy", "mean"), ("fp32", "fp16")
DEFAULTS = ("sampler", "steps", "scale", "eta", "clip", "grid", "variance", "compat", "sampler_options")
TOLERANCE = {"fp32": 2e-4, "fp16": 2e-2, "bf16": 1e-1}  # largest difference over largest expected value
SELF_TESTS = 4


@dataclasses.dataclass(frozen=True)
class Description:
    """alpha_bar [T] float64; num_classes 0: unconditional, else the null label is num_classes; defaults: every key of
    `DEFAULTS`; extra: further keys of the manifest, which the engine carries but does not read."""

    name: str
    shape: tuple[int, ...]
    role: str
    data_range: tuple[float, float]
    alpha_bar: np.ndarray
    schedule_name: str
    prediction: str
    time_scale: float
    num_classes: int
    class_names: tuple[str, ...]
    defaults: dict[str, Any]
    licence: str = ""
    card: str = ""
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def manifest(self, networks: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of a plan whose sections are those of `networks`, `alpha_bar` and `self_test`."""
        conditions = {}
        inputs = {"x": "state", "t": "time"}
        if self.num_classes:
            inputs["label"] = "request"
            conditions["label"] = {
                "dtype": "int64",
                "shape": [],
                "max_length": None,
                "mask": False,
                "role": "class",
                "classes": self.num_classes,
                "null": self.num_classes,
            }
        return {
            "format": 1,
            "producer": f"ddpm_rt {_core.__version__}",
            "name": self.name,
            "requires": [],
            "row_version": 1,
            "rng_version": 1,
            "networks": dict(networks),
            "stages": [{"kind": "diffusion", **stage, "inputs": inputs}],
            "conditions": conditions,
            "class_names": list(self.class_names),
            "sample": {
                "shape": list(self.shape),
                "role": self.role,
                "range": list(self.data_range),
                "uint8": "round",
            },
            "schedule": {"section": "alpha_bar", "T": len(self.alpha_bar), "name": self.schedule_name},
            "prediction": self.prediction,
            "variance": "fixed",
            "time": {"type": "index", "scale": self.time_scale},
            "defaults": self.defaults,
            "self_test": {"section": "self_test", "count": SELF_TESTS, "tolerance": TOLERANCE},
            "sources": self.sources,
            "licence": self.licence,
            "card": self.card,
            **self.extra,
        }


def one_of(value: Any, field: str, known: Sequence[str]) -> str:
    if value not in known:
        raise OptionError(f"{field}: expected one of {', '.join(known)}, got {value!r}")
    return value


def schedule_of(schedule: Any) -> tuple[np.ndarray, str]:
    """alpha_bar [T] float64, and a name, of whatever `ddpm_rt.rows` takes or an object with `alpha_bar`."""
    if hasattr(schedule, "alpha_bar"):
        return np.asarray(schedule.alpha_bar, np.float64), "given"
    name = schedule if isinstance(schedule, str) else "given"
    if isinstance(schedule, Mapping) and "name" in schedule:
        name = str(schedule["name"])
    return kernels.alpha_bar(schedule), name


def describe(
    *,
    name: str,
    shape: Sequence[int],
    schedule: Any = "linear",
    prediction: str = "eps",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    data_range: Sequence[float] = (-1.0, 1.0),
    role: str | None = None,
    time_scale: float = 1.0,
    licence: str | None = None,
    card: str | None = None,
    sources: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Description:
    """Checked and completed: what is missing in `defaults` takes the plan's own. OptionError naming the field."""
    try:
        dims = tuple(int(d) for d in shape)
        whole = all(float(d) == int(d) for d in shape)
    except (TypeError, ValueError):
        dims, whole = (), False
    if not whole or not 1 <= len(dims) <= 4 or min(dims) < 1:
        raise OptionError(f"shape: expected 1 to 4 positive sizes without the batch, got {shape!r}")
    role = one_of(role or ("image" if len(dims) == 3 else "vector"), "role", ROLES)
    if role == "image" and len(dims) != 3:
        raise OptionError(f"shape: expected [C, H, W] for role image, got {list(dims)}")
    alpha_bar, schedule_name = schedule_of(schedule)
    names = tuple(str(n) for n in class_names or ())
    classes = len(names) if num_classes is None else num_classes
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise OptionError(f"num_classes: expected None or a whole number, got {num_classes!r}")
    if names and len(names) != classes:
        raise OptionError(f"class_names: expected {classes} names, as there are classes, got {len(names)}")
    for key in defaults or {}:
        one_of(key, "defaults", DEFAULTS)
    own = {
        "sampler": "ddim",
        "steps": min(50, len(alpha_bar)),
        "scale": 3.0 if classes else 1.0,
        "eta": 0.0,
        "clip": "rederive" if role == "image" else "none",
        "grid": "leading",
        "variance": "fixed_small",
    }
    given = {k: v for k, v in (defaults or {}).items() if v is not None}
    if given.get("compat"):  # that project's own, each of them
        own = {"sampler": "ddim", "scale": own["scale"]}
    elif given.get("sampler", "ddim") == "ddpm":
        del own["eta"]
        own["steps"] = len(alpha_bar)
    elif given.get("sampler", "ddim") != "ddim":  # the sampler's own
        own = {"scale": own["scale"], "clip": own["clip"]}
    try:
        low, high = (float(v) for v in data_range)
        scale = float(time_scale)
    except (TypeError, ValueError) as e:
        raise OptionError(f"data_range, time_scale: expected numbers, got {data_range!r}, {time_scale!r}") from e
    return Description(
        name=name,
        shape=dims,
        role=role,
        data_range=(low, high),
        alpha_bar=alpha_bar,
        schedule_name=schedule_name,
        prediction=one_of(prediction, "prediction", PREDICTIONS),
        time_scale=scale,
        num_classes=classes,
        class_names=names,
        defaults=own | given,
        licence=licence or "",
        card=card or "",
        sources=dict(sources or {}),
        extra=dict(extra or {}),
    )
