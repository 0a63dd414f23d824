"""ONNX operators that move elements: shapes, slices, resampling, reductions; and constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from . import functions
from .builder import Builder, Value
from .operators import number, operator, optional
from .reader import Node

_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
_REDUCTIONS = {
    "ReduceL2": torch.linalg.vector_norm, "ReduceMax": torch.amax, "ReduceMean": torch.mean, "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}  # fmt: skip


def axes_of(b: Builder, node: Node, inputs: list[Any], index: int) -> list[int] | None:
    """An input from opset 13 or 18 on, an attribute before."""
    value = optional(inputs, index)
    return node.attributes.get("axes") if value is None else [int(a) for a in b.ints(value)]


@operator("Constant")
def _constant(b: Builder, node: Node, inputs: list[Any]) -> Any:
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in node.attributes:
            return b.static(torch.from_numpy(np.array(node.attributes[name], dtype)))
    return b.static(torch.from_numpy(np.array(node.attributes["value"])))


@operator("ConstantOfShape")
def _constant_of_shape(b: Builder, node: Node, inputs: list[Any]) -> Any:
    fill = torch.from_numpy(np.array(node.attributes.get("value", np.zeros(1, np.float32)))).reshape(())
    return b.call(torch.full, b.ints(inputs[0]), fill.item(), dtype=fill.dtype)


@operator("Range")
def _range(b: Builder, node: Node, inputs: list[Any]) -> Any:
    if any(not v.is_static for v in inputs):
        raise b.refuse("ranges of constants and batch sizes", "one of data")
    return b.call(functions.arange, *inputs)


@operator("Shape")
def _shape(b: Builder, node: Node, inputs: list[Any]) -> Any:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return Value(tuple(torch.tensor(tuple(t.shape)[start:end], dtype=torch.int64) for t in inputs[0].pair))


@operator("Size")
def _size(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return Value(tuple(torch.tensor(t.numel()) for t in inputs[0].pair))


@operator("Reshape")
def _reshape(b: Builder, node: Node, inputs: list[Any]) -> Any:
    sizes, own = b.ints(inputs[1]), b.shape(inputs[0])
    if not node.attributes.get("allowzero"):
        sizes = [own[i] if size == 0 else size for i, size in enumerate(sizes)]
    return b.call(torch.reshape, inputs[0], sizes)


@operator("Flatten")
def _flatten(b: Builder, node: Node, inputs: list[Any]) -> Any:
    axis = node.attributes.get("axis", 1) % (inputs[0].rank + 1)
    if axis == 0:
        return b.call(torch.reshape, inputs[0], [1, -1])
    front = b.call(torch.flatten, inputs[0], 0, axis - 1)
    return b.call(torch.flatten, front, 1) if front.rank > 1 else b.call(torch.unsqueeze, front, 1)


@operator("Squeeze")
def _squeeze(b: Builder, node: Node, inputs: list[Any]) -> Any:
    axes = axes_of(b, node, inputs, 1)
    if axes is None:
        axes = [i for i, size in enumerate(b.shape(inputs[0])) if size == 1]
    return b.call(torch.squeeze, inputs[0], tuple(axes))


@operator("Unsqueeze")
def _unsqueeze(b: Builder, node: Node, inputs: list[Any]) -> Any:
    axes = axes_of(b, node, inputs, 1)
    value, rank = inputs[0], inputs[0].rank + len(axes)
    for axis in sorted(a % rank for a in axes):
        value = b.call(torch.unsqueeze, value, axis)
    return value


@operator("Transpose")
def _transpose(b: Builder, node: Node, inputs: list[Any]) -> Any:
    order = node.attributes.get("perm") or list(reversed(range(inputs[0].rank)))
    return b.call(torch.permute, inputs[0], order)


@operator("Concat")
def _concat(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(torch.cat, b.matched(*inputs), node.attributes["axis"])


@operator("Split")
def _split(b: Builder, node: Node, inputs: list[Any]) -> Any:
    axis, sizes = node.attributes.get("axis", 0), optional(inputs, 1)
    if sizes is not None:
        return b.call(torch.split, inputs[0], b.ints(sizes), axis)
    count = node.attributes.get("num_outputs", len(node.outputs))
    size = b.shape(inputs[0])[axis]
    if not isinstance(size, int):
        raise b.refuse("Split along an axis of fixed size", "the batch")
    each = -(-size // count)
    return b.call(torch.split, inputs[0], [min(each, size - i * each) for i in range(count)], axis)


@operator("Slice")
def _slice(b: Builder, node: Node, inputs: list[Any]) -> Any:
    starts, ends = b.ints(inputs[1]), b.ints(inputs[2])
    axes = axes_of(b, node, inputs, 3) or list(range(len(starts)))
    steps = [1] * len(starts) if optional(inputs, 4) is None else b.ints(inputs[4])
    value = inputs[0]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not isinstance(step, int) or step < 1:
            raise b.refuse("slices with a positive step", f"step {step}")
        if start != 0 or step != 1 or not isinstance(end, int) or end < 2**31:
            value = b.call(functions.slice_along, value, axis, start, end, step)
    return value


@operator("Gather")
def _gather(b: Builder, node: Node, inputs: list[Any]) -> Any:
    x, index = inputs
    axis = node.attributes.get("axis", 0) % x.rank
    if index.is_static:
        index = Value(tuple(torch.where(i < 0, i + t.shape[axis], i) for i, t in zip(index.pair, x.pair, strict=True)))
    return b.call(functions.gather, x, index, axis)


@operator("Expand")
def _expand(b: Builder, node: Node, inputs: list[Any]) -> Any:
    sizes, own = b.ints(inputs[1]), b.shape(inputs[0])
    rank = max(len(sizes), len(own))
    sizes, own = ([1] * (rank - len(s)) + s for s in (sizes, own))
    return b.call(torch.broadcast_to, inputs[0], [o if s == 1 else s for s, o in zip(sizes, own, strict=True)])


@operator("Tile")
def _tile(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(torch.tile, inputs[0], b.ints(inputs[1]))


@operator("Pad")
def _pad(b: Builder, node: Node, inputs: list[Any]) -> Any:
    x, mode = inputs[0], node.attributes.get("mode", "constant")
    pads = [int(p) for p in b.ints(inputs[1])]
    axes = axes_of(b, node, inputs, 3) or list(range(x.rank))
    around = [[0, 0] for _ in range(x.rank)]
    for i, axis in enumerate(axes):
        around[axis] = [pads[i], pads[len(axes) + i]]
    while mode != "constant" and len(around) > 2 and around[0] == [0, 0] and len(around) > x.rank - 2:
        around.pop(0)
    flat = [p for pair in reversed(around) for p in pair]
    if mode == "constant":
        return b.call(F.pad, x, flat, "constant", number(b, optional(inputs, 2), 0))
    return b.call(F.pad, x, flat, _MODES[mode])


@operator("DepthToSpace")
def _depth_to_space(b: Builder, node: Node, inputs: list[Any]) -> Any:
    is_crd = node.attributes.get("mode", "DCR") == "CRD"
    return b.call(functions.depth_to_space, inputs[0], node.attributes["blocksize"], is_crd)


@operator("SpaceToDepth")
def _space_to_depth(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(functions.space_to_depth, inputs[0], node.attributes["blocksize"])


@operator("Resize")
def _resize(b: Builder, node: Node, inputs: list[Any]) -> Any:
    """Where ONNX's and torch's coordinates agree."""
    x, scales, sizes = inputs[0], optional(inputs, 2), optional(inputs, 3)
    a, rank, own = node.attributes, inputs[0].rank - 2, b.shape(inputs[0])
    if sizes is not None:
        wanted = b.ints(sizes)
    else:
        factors = scales.pair[0].tolist()
        wanted = [size if f == 1 else int(size * f) for size, f in zip(own, factors, strict=True)]
    mode, at = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    refusal = b.refuse(
        "a Resize of pixels as torch has it", f"mode {mode}, {at}, {a.get('nearest_mode', 'round_prefer_floor')}"
    )
    if wanted[:2] != own[:2] or a.get("antialias") or "axes" in a or not all(isinstance(s, int) for s in own[2:]):
        raise refusal
    if mode == "nearest":
        is_whole = all(w % o == 0 for w, o in zip(wanted[2:], own[2:], strict=True))
        is_floor = at == "asymmetric" and a.get("nearest_mode") == "floor"
        is_round = at in ("half_pixel", "pytorch_half_pixel") and a.get(
            "nearest_mode", "round_prefer_floor"
        ).startswith("round")
        if not (is_floor or (is_round and is_whole)):
            raise refusal
        return b.call(F.interpolate, x, wanted[2:], None, "nearest")
    name = {
        ("linear", 1): "linear",
        ("linear", 2): "bilinear",
        ("linear", 3): "trilinear",
        ("cubic", 2): "bicubic",
    }.get((mode, rank))
    if (
        name is None
        or at not in ("half_pixel", "pytorch_half_pixel", "align_corners")
        or (mode == "cubic" and a.get("cubic_coeff_a", -0.75) != -0.75)
    ):
        raise refusal
    return b.call(F.interpolate, x, wanted[2:], None, name, at == "align_corners")


@operator(*_REDUCTIONS)
def _reduce(b: Builder, node: Node, inputs: list[Any]) -> Any:
    x, axes = inputs[0], axes_of(b, node, inputs, 1)
    if not axes:
        if node.attributes.get("noop_with_empty_axes"):
            return x
        axes = list(range(x.rank))
    keep = bool(node.attributes.get("keepdims", 1))
    if node.op == "ReduceL2":
        return b.call(torch.linalg.vector_norm, x, 2, axes, keep)
    return b.call(_REDUCTIONS[node.op], x, axes, keep)
