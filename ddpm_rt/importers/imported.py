"""What every reader of another project's model hands to `ddpm_rt.export`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, PlanError
from . import scheduler

if TYPE_CHECKING:
    from torch import nn

    from .scheduler import Scheduler


@dataclasses.dataclass
class Imported:
    """A network that computes, and what its file says beside it.

    module: (x, t[, label]) -> the prediction. settings: schedule, prediction, and what a call does unasked. defaults: over those.
    keeps_variance: of 2C channels the second half is the settings' learned variance. origin: for the plan's card.
    """

    module: nn.Module
    shape: tuple[int, ...]
    settings: Scheduler
    origin: str
    sources: dict[str, str]
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    role: str | None = None
    data_range: tuple[float, float] = (-1.0, 1.0)
    uint8: str = "round"
    integer_time: bool = False
    keeps_variance: bool = True


def write(
    found: Imported,
    path: str | os.PathLike[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    card: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The plan. defaults: over the file's own; options: weights, name, licence of `export_plan`."""
    from ..export.module import export_plan

    settings = found.settings
    given = {k: v for k, v in (defaults or {}).items() if v is not None}
    return export_plan(
        found.module,
        path,
        shape=found.shape,
        schedule=settings.schedule,
        prediction=settings.prediction,
        time=settings.time,
        time_scale=settings.time_scale,
        variance=settings.variance if found.keeps_variance else "fixed",
        num_classes=found.num_classes,
        class_names=found.class_names,
        defaults=settings.defaults_with(found.defaults | given),
        role=found.role,
        data_range=found.data_range,
        uint8=found.uint8,
        integer_time=found.integer_time,
        sources=found.sources,
        card=card or found.origin,
        split=False,
        **options,
    )


def read_json(path: Path) -> dict[str, Any]:
    """PlanError where it is missing or no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise PlanError(f"{path}: expected a JSON file: {e}") from e
    if not isinstance(content, dict):
        raise PlanError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_scheduler(given: str | os.PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A scheduler_config: its content, its file, or the folder that holds it."""
    if given is None or isinstance(given, Mapping):
        return None if given is None else dict(given)
    if not isinstance(given, (str, os.PathLike)):
        raise OptionError(f"scheduler: expected a scheduler_config.json or its content, got {type(given).__name__}")
    file = Path(given)
    return read_json(file / "scheduler_config.json" if file.is_dir() else file)


def own_settings(
    schedule: Any,
    prediction: str,
    defaults: Mapping[str, Any],
    *,
    variance: str = "fixed",
    time: str | None = None,
    time_scale: float = 1.0,
) -> Scheduler:
    """Settings of a project that has no scheduler files. schedule: what `noise_model` takes, or alpha_bar [T] alone."""
    if not isinstance(schedule, (str, dict)):
        schedule = {"alpha_bar": schedule}
    return scheduler.Scheduler("", schedule, prediction, variance, time, time_scale, dict(defaults))


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    hashed = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 22):
            hashed.update(piece)
    return hashed.hexdigest()


def load_state(module: nn.Module, state: Mapping[str, Any], where: str) -> nn.Module:
    """`state` into the module. PlanError naming the first tensor that is missing, left over or of another shape."""
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        want = tuple(own[name].shape) if name in own else None
        got = tuple(getattr(state[name], "shape", ())) if name in state else None
        if want != got:
            raise PlanError(f"{where}: {name}: expected {want if want is not None else 'no such tensor'}, got "
                            f"{got if got is not None else 'none'}")  # fmt: skip
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})
    return module.eval().requires_grad_(False)


def need(package: str) -> Any:
    """A library that reads its own files."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise OptionError(f"source: its files are read by {package} itself: pip install {package} ({e})") from e
