"""What a plan says of a model beside its networks, and the manifest (version 1, docs/plan_format.md) made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import _core, kernels
from ..errors import OptionError

ROLES, WEIGHTS = ("image", "latent", "vector"), ("fp32", "fp16")
PREDICTIONS = ("eps", "x0", "v", "flow", "score", "scaled_score", "energy", "mean", "edm", "consistency")
VARIANCES = ("fixed", "learned", "learned_range")
TIMES = ("index", "t", "sigma", "log_sigma", "log_half_sigma")
DEFAULTS = (
    "sampler", "steps", "scale", "eta", "clip", "clip_range", "grid", "variance", "compat", "sampler_options", "threshold",
    "guidance_rescale", "guidance_interval", "classifier_scale",
)  # fmt: skip
TOLERANCE = {"fp32": 2e-4, "fp16": 2e-2, "bf16": 1e-1}  # largest difference over largest expected value
SELF_TESTS = 4


@dataclasses.dataclass(frozen=True)
class Description:
    """alpha_bar [T] float64, empty where `continuous` is the manifest's schedule; variance: of the network's output, learned ones
    behind the prediction; num_classes 0: unconditional, else the null label is num_classes; defaults: keys of `DEFAULTS`;
    extra: further keys of the manifest, which the engine carries but does not read."""

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
    continuous: dict[str, Any] | None = None
    variance: str = "fixed"
    time: str | None = None
    uint8: str = "round"
    classifier: bool = False

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one output of the network: [prediction | learned variance | classifier's gradient] along the first axis."""
        return (self.shape[0] * (1 + (self.variance != "fixed") + self.classifier), *self.shape[1:])

    def times(self, count: int) -> np.ndarray:
        """What the network is told at `count` levels spread over the schedule.  -> float32 [count]"""
        if self.continuous is None and self.time in (None, "index"):
            return (np.linspace(0, len(self.alpha_bar) - 1, count).round() * self.time_scale).astype(np.float32)
        schedule = {"alpha_bar": self.alpha_bar}
        if self.continuous is not None:
            schedule = {"name": self.continuous["kind"], **{k: v for k, v in self.continuous.items() if k != "kind"}}
        told = kernels.rows("euler_ancestral" if self.prediction != "flow" else "ddim", 8, schedule, prediction=self.prediction,
                            time=self.time, time_scale=self.time_scale, clip="none", network_variance=self.variance)["t"]  # fmt: skip
        return told[np.linspace(len(told) - 1, 0, count).round().astype(int)].astype(np.float32)

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
                "uint8": self.uint8,
            },
            "schedule": self.continuous
            or {"section": "alpha_bar", "T": len(self.alpha_bar), "name": self.schedule_name},
            "prediction": self.prediction,
            "variance": self.variance,
            "classifier": self.classifier,
            "time": {"type": self.time, "scale": self.time_scale},
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


def schedule_of(schedule: Any) -> tuple[np.ndarray, str, dict[str, Any] | None]:
    """alpha_bar [T] float64, a name, and the manifest's entry of a continuous schedule, of whatever `ddpm_rt.rows` takes or an
    object with `alpha_bar`."""
    if hasattr(schedule, "alpha_bar"):
        return np.asarray(schedule.alpha_bar, np.float64), "given", None
    name = schedule if isinstance(schedule, str) else "given"
    if isinstance(schedule, Mapping) and "name" in schedule:
        name = str(schedule["name"])
    alpha_bar, continuous = kernels.noise_model(schedule)
    return alpha_bar, name, continuous


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
    variance: str = "fixed",
    time: str | None = None,
    uint8: str = "round",
    classifier: bool = False,
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
    alpha_bar, schedule_name, continuous = schedule_of(schedule)
    names = tuple(str(n) for n in class_names or ())
    classes = len(names) if num_classes is None else num_classes
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise OptionError(f"num_classes: expected None or a whole number, got {num_classes!r}")
    if names and len(names) != classes:
        raise OptionError(f"class_names: expected {classes} names, as there are classes, got {len(names)}")
    for key in defaults or {}:
        one_of(key, "defaults", DEFAULTS)
    T = len(alpha_bar) if continuous is None else 1000
    own = {
        "sampler": "ddim",
        "steps": min(50, T),
        "scale": 3.0 if classes and not classifier else 1.0,
        "eta": 0.0,
        "clip": "rederive" if role == "image" else "none",
        "grid": "leading",
        "variance": "fixed_small",
    }
    if variance != "fixed":  # the network's own, where the sampler takes one
        del own["variance"]
    given = {k: v for k, v in (defaults or {}).items() if v is not None}
    if given.get("compat"):  # that project's own, each of them
        own = {"sampler": "ddim", "scale": own["scale"]}
    elif given.get("sampler", "ddim") == "ddpm":
        del own["eta"]
        own["variance"] = "fixed_small" if variance == "fixed" else variance
        own["steps"] = T
    elif given.get("sampler", "ddim") != "ddim":  # the sampler's own
        own = {"scale": own["scale"], "clip": own["clip"]}
    lists_levels = {"timesteps", "sigmas"} & set(given.get("sampler_options") or {})
    if continuous is not None or lists_levels:
        for key in ("grid", "steps"):  # the sampler's own, or as many as are listed
            own.pop(key, None)
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
        defaults=own | ({"classifier_scale": 1.0} if classifier else {}) | given,
        licence=licence or "",
        card=card or "",
        sources=dict(sources or {}),
        extra=dict(extra or {}),
        classifier=classifier,
        continuous=continuous,
        variance=one_of(variance, "variance", VARIANCES),
        time=None if time is None else one_of(time, "time", TIMES),
        uint8=uint8,
    )
