"""Plans from torch modules, and from checkpoints of `ddpm-rt train`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import OptionError, PlanError
from . import assemble, checks, graph
from .adapters import Denoiser, Rows, Trunk
from .description import WEIGHTS, Description, describe, one_of

if TYPE_CHECKING:
    from ..training.config import TrainConfig

log = logging.getLogger("ddpm_rt.export")


def export_plan(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int],
    schedule: Any = "linear",
    prediction: str = "eps",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    weights: str = "fp32",
    defaults: Mapping[str, Any] | None = None,
    data_range: Sequence[float] = (-1.0, 1.0),
    role: str | None = None,
    time_scale: float = 1.0,
    time: str | None = None,
    variance: str = "fixed",
    scheduler: Mapping[str, Any] | None = None,
    classifier: nn.Module | str | os.PathLike[str] | None = None,
    integer_time: bool = False,
    split: bool | None = None,
    name: str | None = None,
    licence: str | None = None,
    card: str | None = None,
    sources: Mapping[str, str] | None = None,
    uint8: str = "round",
    conditions: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A plan of any torch module, checked against it. Returns path, bytes, parity and manifest.

    Args:
        module: module(x, t), or module(x, t, label) with classes, -> eps. x, eps [B, *shape] float32; t [B] float32,
            the timestep index times time_scale; label [B] int64 in 0..num_classes, which is the null label. Results
            with an attribute `sample` (diffusers) and tuples are understood; of 2C channels the first C are taken. It
            is copied to the CPU, in float32 and eval mode; the module itself is left as it is.
        path: of the plan; written whole or not at all.
        shape: of one sample, rank 1 to 4; images are [C, H, W].
        schedule: "linear", "scaled_linear", "cosine", "sigmoid" (T = 1000), betas [T], {"name", "T"}, {"betas"},
            {"alpha_bar"}, or an object with `alpha_bar` [T]; or one in continuous time, as in `Engine.from_callable`.
        prediction: what the module returns: "eps", "x0", "v", "flow", "edm" or another of docs/samplers.md.
        class_names: one per class; num_classes may then be left out.
        weights: "fp32", or "fp16" for half the file; computation is in float32 either way.
        defaults: any of sampler, steps, scale, eta, clip, clip_range, grid, variance, compat, sampler_options, threshold and the
            guidance_* options: what `Engine.sample` does unasked.
        time: what the module is told, times time_scale: "index" or "t" (the schedule's own), "sigma", "log_sigma",
            "log_half_sigma"; None: as the schedule has it.
        variance: "learned_range" or "learned": of 2C channels the second half is the variance (Nichol & Dhariwal eq. 15).
        scheduler: a diffusers scheduler_config with `_class_name`, in place of schedule, prediction, time and variance
            (docs/importing.md).
        classifier: a module of (x, t) -> logits [B, num_classes] of noisy samples, or a file of torch.export.save: its gradient
            becomes part of the graph, for `classifier_scale`. The module itself may take labels or not.
        conditions: further inputs of the module, by keyword: name -> shape, max_length, mask, role, null of
            `conditions.checked` (docs/conditions.md). No classifier beside them.
        role: "image", "latent" or "vector"; None: image for rank 3, else vector.
        integer_time: give the module t as int64.
        split: store rows(t, label) apart, so that it is computed once per table and not once per step: the module needs
            the methods rows(t[, label]) -> [B, R] and trunk(x, rows) -> eps. None: if it has them.

    Raises:
        OptionError: an argument. PlanError: the module cannot be exported, couples the images of a batch, differs from
            its graph, or is beyond 2 GB.
    """
    if not isinstance(module, nn.Module):
        raise OptionError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    one_of(weights, "weights", WEIGHTS)
    _check_size(module, weights)
    if scheduler is not None:
        from ..call import expect_own_schedule
        from ..importers.scheduler import read

        expect_own_schedule(schedule, prediction, variance, time, time_scale)
        settings = read(scheduler)
        schedule, prediction, variance = settings.schedule, settings.prediction, settings.variance
        time, time_scale, defaults = settings.time, settings.time_scale, settings.defaults_with(defaults)
    about = describe(
        name=Path(path).stem if name is None else name,
        shape=shape,
        schedule=schedule,
        prediction=prediction,
        num_classes=num_classes,
        class_names=class_names,
        defaults=defaults,
        data_range=data_range,
        role=role,
        time_scale=time_scale,
        licence=licence,
        card=card,
        sources={"weights_sha256": _weights_digest(module), **(sources or {})},
        variance=variance,
        time=time,
        uint8=uint8,
        conditions=conditions,
        classifier=classifier is not None,
    )
    return _write(module, path, about, weights, integer_time, split, classifier)


def export_checkpoint(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    weights: str = "fp32",
    defaults: Mapping[str, Any] | None = None,
    classifier: nn.Module | str | os.PathLike[str] | None = None,
    split: bool | None = None,
    name: str | None = None,
    licence: str | None = None,
    card: str | None = None,
) -> dict[str, Any]:
    """A plan of a checkpoint of `ddpm-rt train`: EMA weights, with the run's schedule, classes and configuration.

    source: the run's folder, or one of its .safetensors files. card None: a line on the run. The other arguments and
    the result are `export_plan`'s.
    """
    from ..training import checkpoint

    one_of(weights, "weights", WEIGHTS)
    source = Path(source)
    file = source / checkpoint.MODEL if source.is_dir() else source
    net, cfg = checkpoint.load_checkpoint(file)
    _check_size(net, weights)
    _, _, step = checkpoint.read(file)
    log.info("%s: step %d, %d parameters", file, step, sum(p.numel() for p in net.parameters()))
    about = describe(
        name=Path(path).stem if name is None else name,
        shape=(net.cfg.in_channels, *net.cfg.image_size),
        schedule=cfg.make_schedule(),
        num_classes=net.cfg.num_classes,
        class_names=cfg.class_names,
        defaults=defaults,
        licence=licence,
        card=card or _history(cfg, step),
        sources={"checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        variance="learned_range" if net.cfg.learned_variance else "fixed",
        classifier=classifier is not None,
        extra={"training": {"step": step, "config": dataclasses.asdict(cfg), **_effort(file.parent, step)}},
    )
    about = dataclasses.replace(about, schedule_name=str(cfg.schedule.get("name", "given")))
    return _write(net, path, about, weights, False, split, classifier)


def _with_gradient(
    whole: nn.Module, classifier: Any, inputs: checks.Arrays, classes: int, integer_time: bool
) -> nn.Module:
    from . import classifier as gradients

    if not isinstance(classifier, nn.Module):
        classifier = gradients.load(classifier)
    with contextlib.suppress(NotImplementedError):  # a program of torch.export has no eval()
        classifier = copy.deepcopy(classifier).cpu().float().eval().requires_grad_(False)
    x, t, label = (torch.from_numpy(v) for v in inputs.values())
    try:
        with torch.no_grad():
            whole(x, t, label)
        takes_label = True
    except TypeError:
        takes_label = False
    return gradients.WithGradient(whole, gradients.gradient_of(classifier, x, t, classes, integer_time), takes_label)


def _history(cfg: TrainConfig, step: int) -> str:
    classes = f", classes {', '.join(cfg.class_names[:20])}" if cfg.class_names else ""
    images = f"{cfg.images} images of " if cfg.images else ""
    return (
        f"Trained by ddpm-rt train on {images}{cfg.data}{classes}: {step} steps of {cfg.batch} images, loss {cfg.loss}."
    )


def _effort(folder: Path, step: int) -> dict[str, float]:
    """Seconds of training up to that step, where the run's log.csv tells them."""
    from ..training.report import Log

    seconds = [line["seconds"] for line in Log(folder).rows() if line["step"] <= step]
    return {"seconds": round(sum(seconds), 1)} if len(seconds) >= step else {}


def _check_size(module: nn.Module, weights: str) -> None:
    size = sum(p.numel() for p in module.parameters()) * (2 if weights == "fp16" else 4)
    if size > graph.MAX_BYTES:
        raise PlanError(f"model: expected at most {graph.MAX_BYTES} bytes of weights (protobuf's limit), got {size}")


def _weights_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(
    module: nn.Module,
    path: str | os.PathLike[str],
    about: Description,
    weights: str,
    integer_time: bool,
    split: bool | None,
    classifier: nn.Module | str | os.PathLike[str] | None,
) -> dict[str, Any]:
    splits = hasattr(module, "rows") and hasattr(module, "trunk") and classifier is None and not about.conditions
    if split and not splits:
        why = "got none" if classifier is None else "got a classifier, which needs x and t in one graph"
        raise OptionError(f"split: expected a module with the methods rows(t[, label]) and trunk(x, rows), {why}")
    net = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    kept = about.shape[0] if about.variance == "fixed" else None
    inputs = checks.cases(about)
    named = [k for k in inputs if k not in ("x", "t", "label")]
    if named and (classifier is not None or len(named) + bool(about.num_classes) > 8):
        raise OptionError("conditions: expected at most 8 inputs beside x and t, labels and masks included, and no classifier, got more")
    whole: nn.Module = Denoiser(net, kept, integer_time, named)
    if classifier is not None and not about.num_classes:
        raise OptionError("classifier: expected it with num_classes, got none")
    if classifier is not None:
        whole = _with_gradient(whole, classifier, inputs, about.num_classes, integer_time)

    def original(inputs: checks.Arrays) -> np.ndarray:
        try:
            with torch.no_grad():
                return whole(*(torch.from_numpy(v) for v in inputs.values())).numpy()
        except Exception as e:  # the module's own code
            raise PlanError(
                f"module: expected a module of {', '.join(inputs)} for samples of shape {list(about.shape)}, got "
                f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:300]}"
            ) from e

    checks.check_output(original(inputs), about)
    example = {k: torch.from_numpy(v) for k, v in inputs.items()}
    conditions = {k: v for k, v in example.items() if k != "x"}
    models, ports = {}, {}
    if splits and split is not False:
        rows_of = Rows(net, integer_time).eval()
        with torch.no_grad():
            rows = rows_of(*conditions.values())
        models["temb"] = graph.from_torch(rows_of, conditions, "rows")
        ports["temb"] = ({k: k for k in conditions}, {"rows": "rows"})
        models["unet"] = graph.from_torch(Trunk(net, kept).eval(), {"x": example["x"], "rows": rows}, "eps")
        ports["unet"] = ({"x": "x", "rows": "rows"}, {"eps": "eps"})
    else:
        models["unet"] = graph.from_torch(whole.eval(), example, "eps")
        ports["unet"] = ({k: k for k in example}, {"eps": "eps"})
    return assemble.write(path, about, models, ports, original, weights)
