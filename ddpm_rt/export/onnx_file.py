"""Plans from an ONNX file and a JSON card that says what the file cannot."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PlanError
from . import assemble, checks, conditions, graph, rewrite
from .card import description_of, ports_of, read_card
from .description import WEIGHTS, one_of


def export_onnx(
    model: str | os.PathLike[str],
    card: str | os.PathLike[str] | Mapping[str, Any] | None,
    path: str | os.PathLike[str],
    *,
    weights: str = "fp32",
    defaults: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """A plan of an ONNX file, whose graph is brought into the plan's form and checked against the file.

    model: x [B, *shape], t [B], perhaps label [B] and conditions (docs/conditions.md) -> eps [B, *shape], batch dimension free, weights inside; other
    element types get casts. card: a JSON file or its content, see `card.EXAMPLE`; None: NAME.json beside the model.
    defaults: over the card's. Returns path, bytes, parity and manifest.

    Raises:
        PlanError: the card lacks something (the message shows what to write) or does not fit the graph; the graph has
            external data, a fixed batch, couples the images of a batch, or is beyond 2 GB. OptionError: an argument.
    """
    one_of(weights, "weights", WEIGHTS)
    model = Path(model)
    proto = graph.load(model)
    original_bytes = model.read_bytes()
    content = read_card(card, model, graph_inputs(proto))
    inputs, outputs = ports_of(content)
    merged = {**content, "defaults": {**content.get("defaults", {}), **(defaults or {})}}
    about = description_of(
        merged,
        name=name or content.get("name") or Path(path).stem,
        sources={
            "onnx_sha256": hashlib.sha256(original_bytes).hexdigest(),
            "card_sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        },
    )
    _check_shape(proto, inputs["x"], about.shape)
    native = {v.name: v.type.tensor_type.elem_type for v in proto.graph.input}
    rewrite.fit_ports(proto, inputs, outputs)
    rewrite.fix_sizes(proto, {inputs[role]: shape for role, shape in conditions.inputs_of(about.conditions).items()})
    rewrite.lower_group_norm(proto)
    before = checks.compiled(original_bytes, outputs["eps"])

    def original(given: checks.Arrays) -> np.ndarray:
        from onnx.helper import tensor_dtype_to_np_dtype

        wired = {
            tensor: given[role].astype(tensor_dtype_to_np_dtype(native[tensor])) for role, tensor in inputs.items()
        }
        return before(wired).astype(np.float32)

    return assemble.write(path, about, {"unet": proto}, {"unet": (inputs, outputs)}, original, weights)


def graph_inputs(proto) -> dict[str, list]:
    """Tensor name -> dimensions, of the inputs that are not weights."""
    weights = {t.name for t in proto.graph.initializer}
    return {
        v.name: [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in v.type.tensor_type.shape.dim]
        for v in proto.graph.input
        if v.name not in weights
    }


def _check_shape(proto, x: str, shape: tuple[int, ...]) -> None:
    found = graph_inputs(proto).get(x)
    if found is not None and (
        len(found) != len(shape) + 1
        or any(isinstance(f, int) and f != s for f, s in zip(found[1:], shape, strict=True))
    ):
        raise PlanError(
            f"sample.shape: expected the shape of the graph's {x} behind the batch, {found[1:]}, got {list(shape)}"
        )
