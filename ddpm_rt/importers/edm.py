"""An EDM .pkl (Karras et al. 2022, 2206.00364): tensors and construction arguments, read without executing the file.

`ema` is a network F inside one of four preconditionings (table 1), each a schedule, a prediction and a time here:

| class        | schedule                      | prediction   | told                       |
|--------------|-------------------------------|--------------|----------------------------|
| EDMPrecond   | edm                           | edm          | ln(sigma) / 4              |
| VPPrecond    | vp                            | eps          | (M - 1) t                  |
| VEPrecond    | ve                            | scaled_score | ln(sigma / 2)              |
| iDDPMPrecond | discrete, its own table of u  | eps          | M - 1 - index              |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, PlanError
from . import edm_pickle
from .edm_networks import DhariwalUNet, SongUNet
from .edm_pickle import Record
from .imported import Imported, digest, load_state, own_settings
from .scheduler import Scheduler

NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
_LARGEST = 80.0  # the sampler's own sigma_max
_SMALLEST = 0.002


class _OneHot(nn.Module):
    """(x, t, label) with labels by number; the last, K, is no label: the zero vector."""

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("rows", torch.cat([torch.eye(classes), torch.zeros(1, classes)]))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.net(x, t, self.rows[label])


def read(path: Path, *, weights_of: str | None = None) -> Imported:
    """weights_of: the key of the file that holds the network; None: "ema".

    Raises:
        PlanError: a file of another kind, or with a class or a tensor that has no counterpart. OptionError: an argument.
    """
    content = edm_pickle.load(path)
    key = weights_of or "ema"
    if not isinstance(content, Mapping) or not isinstance(content.get(key), Record):
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        if weights_of is not None:
            raise OptionError(
                f"weights_of: expected a key of {path} that holds a network, got {key!r}; it holds {held}"
            )
        raise PlanError(f"{path}: expected a dict with a network as ema, got {held}")
    outer = content[key]
    arguments = _arguments(path, outer)
    inner = dict(outer.children()).get("model")
    if inner is None or inner.kind not in NETWORKS:
        raise PlanError(
            f"{path}: model: expected one of {', '.join(NETWORKS)}, got {inner.kind if inner else 'none'!r}"
        )
    net = _network(path, inner)
    classes = int(arguments.get("label_dim", 0))
    channels, size = int(arguments["img_channels"]), int(arguments["img_resolution"])
    return Imported(
        _OneHot(net, classes) if classes else net, (channels, size, size), _settings(path, outer, arguments),
        f"EDM {outer.kind} over {inner.kind}, {path.name}.", {"checkpoint_sha256": digest(path)}, classes or None,
        defaults={"scale": 1.0} if classes else {}, keeps_variance=False,
    )  # fmt: skip


def _arguments(path: Path, outer: Record) -> dict[str, Any]:
    """What the preconditioning was made with: recorded arguments, over the plain attributes that they became."""
    attributes = {k: v for k, v in outer.state.items() if isinstance(v, (int, float, str, bool))}
    found = attributes | outer.arguments
    for name in ("img_channels", "img_resolution"):
        if not isinstance(found.get(name), int):
            raise PlanError(
                f"{path}: {name}: expected a number among the arguments of {outer.kind}, got {found.get(name)!r}"
            )
    return found


def _network(path: Path, inner: Record) -> nn.Module:
    kind, given = NETWORKS[inner.kind], inner.arguments
    try:
        net = kind(**given)
    except (TypeError, ValueError, IndexError, RuntimeError) as e:
        raise PlanError(f"{path}: model: expected the arguments of a {inner.kind}, got {given}: {e}") from e
    return load_state(net, inner.tensors(), str(path))


def _settings(path: Path, outer: Record, a: Mapping[str, Any]) -> Scheduler:
    options: dict[str, Any] = {}
    defaults = {"compat": "edm", "sampler": "heun", "clip": "none", "steps": 18, "sampler_options": options}
    if outer.kind == "EDMPrecond":
        low, high = float(a.get("sigma_min", 0)), float(a.get("sigma_max", math.inf))
        schedule = {"name": "edm", "sigma_min": max(_SMALLEST, low), "sigma_max": min(_LARGEST, high),
                    "sigma_data": float(a.get("sigma_data", 0.5))}  # fmt: skip
        return own_settings(schedule, "edm", defaults)
    if outer.kind == "VPPrecond":
        beta_d, beta_min = float(a.get("beta_d", 19.9)), float(a.get("beta_min", 0.1))
        schedule = {
            "name": "vp",
            "beta_min": beta_min,
            "beta_max": beta_min + beta_d,
            "t_min": float(a.get("epsilon_t", 1e-5)),
        }
        return own_settings(schedule, "eps", defaults, time_scale=float(a.get("M", 1000)) - 1)
    if outer.kind == "VEPrecond":
        schedule = {
            "name": "ve",
            "sigma_min": float(a.get("sigma_min", 0.02)),
            "sigma_max": float(a.get("sigma_max", 100)),
        }
        return own_settings(schedule, "scaled_score", defaults, time="log_half_sigma")
    if outer.kind == "iDDPMPrecond":
        u = outer.tensors().get("u")
        if u is None or u.ndim != 1 or len(u) < 2:
            raise PlanError(f"{path}: u: expected the table of sigmas of {outer.kind}, found none")
        sigmas = u.double()[:-1].flip(0)  # u[M] is 0
        return own_settings((1 / (1 + sigmas**2)).numpy(), "eps", defaults)
    raise PlanError(f"{path}: ema: expected EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond, got {outer.kind!r}")
