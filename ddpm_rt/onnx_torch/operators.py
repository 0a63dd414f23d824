"""ONNX operators (opset 18 and later) as torch calls: arithmetic, convolutions, norms, products. Those of shapes: shapes.py.

Each takes (builder, node, values of its inputs: None where left out) and returns a Value or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from . import functions
from .builder import Builder, Value
from .reader import Node

Operator = Callable[[Builder, Node, list[Any]], Any]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    def add(fn: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, fn))
        return fn

    return add


def optional(inputs: list[Any], index: int) -> Any:
    return inputs[index] if index < len(inputs) else None


def number(b: Builder, value: Value, default: Any = None) -> Any:
    """The one number of a static tensor."""
    if value is None:
        return default
    if not value.is_static or value.pair[0].numel() != 1:
        raise b.refuse("one constant number", "another operand")
    return value.pair[0].item()


# ---- element by element

_UNARY = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Softplus": F.softplus, "Sqrt": torch.sqrt, "Swish": F.silu, "Tanh": torch.tanh,
}  # fmt: skip
_BINARY = {
    "Add": torch.add, "And": torch.logical_and, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul, "Or": torch.logical_or, "Pow": torch.pow, "Sub": torch.sub,
}  # fmt: skip
_VARIADIC = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}


@operator(*_UNARY)
def _unary(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(_UNARY[node.op], inputs[0])


@operator(*_BINARY)
def _binary(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(_BINARY[node.op], *b.matched(*inputs))


@operator(*_VARIADIC)
def _variadic(b: Builder, node: Node, inputs: list[Any]) -> Any:
    value, *rest = b.matched(*inputs)
    for other in rest:
        value = b.call(_VARIADIC[node.op], value, other)
    return value


@operator("Div")
def _div(b: Builder, node: Node, inputs: list[Any]) -> Any:
    if inputs[0].is_floating:
        return b.call(torch.div, *b.matched(*inputs))
    return b.call(torch.div, *inputs, rounding_mode="trunc")


@operator("Mod")
def _mod(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(torch.fmod if node.attributes.get("fmod") else torch.remainder, *b.matched(*inputs))


@operator("Where")
def _where(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(torch.where, inputs[0], *b.matched(*inputs[1:]))


@operator("Clip")
def _clip(b: Builder, node: Node, inputs: list[Any]) -> Any:
    low, high = (number(b, optional(inputs, i)) for i in (1, 2))
    return inputs[0] if low is None and high is None else b.call(torch.clamp, inputs[0], low, high)


@operator("Gelu", "LeakyRelu", "Elu", "HardSigmoid")
def _activation(b: Builder, node: Node, inputs: list[Any]) -> Any:
    a, x = node.attributes, inputs[0]
    if node.op == "Gelu":
        return b.call(F.gelu, x, approximate=a.get("approximate", "none"))
    if node.op == "LeakyRelu":
        return b.call(F.leaky_relu, x, a.get("alpha", 0.01))
    if node.op == "Elu":
        return b.call(F.elu, x, a.get("alpha", 1.0))
    return b.call(functions.hard_sigmoid, x, a.get("alpha", 0.2), a.get("beta", 0.5))


@operator("Cast")
def _cast(b: Builder, node: Node, inputs: list[Any]) -> Any:
    """The state's floating-point type is the builder's to choose: casts among such types are left out."""
    dtype = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}.get(
        node.attributes["to"], torch.bfloat16 if node.attributes["to"] == 16 else None
    )
    if dtype is None:
        raise b.refuse("casts to floating-point types, int32, int64 and bool", f"type {node.attributes['to']}")
    x = inputs[0]
    if dtype.is_floating_point and not x.is_static:
        return x if x.is_floating else b.cast(x, torch.float32)
    return b.cast(x, torch.float32 if dtype.is_floating_point else dtype)


@operator("CastLike")
def _cast_like(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.cast(inputs[0], inputs[1].dtype)


@operator("Identity", "Dropout")
def _identity(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return inputs[0]


# ---- products


@operator("MatMul")
def _matmul(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(torch.matmul, *b.heavy(*inputs))


@operator("Gemm")
def _gemm(b: Builder, node: Node, inputs: list[Any]) -> Any:
    a, weight, bias = *inputs[:2], optional(inputs, 2)
    if node.attributes.get("transA"):
        a = b.call(torch.t, a)
    if node.attributes.get("transB"):
        weight = b.call(torch.t, weight)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    return b.call(functions.gemm, *b.heavy(a, weight, bias), alpha, beta)


@operator("Einsum")
def _einsum(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(torch.einsum, node.attributes["equation"], *b.heavy(*inputs))


# ---- convolutions and pooling


def _geometry(b: Builder, node: Node, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """strides, dilations, pads at the start and at the end of each spatial axis"""
    a = node.attributes
    pads = a.get("pads", [0] * (2 * rank))
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise b.refuse(f"{node.op} with its pads given", f"auto_pad {a['auto_pad']}")
    return a.get("strides", [1] * rank), a.get("dilations", [1] * rank), pads[:rank], pads[rank:]


def _padded(b: Builder, x: Value, start: list[int], end: list[int], fill: float = 0.0) -> tuple[Value, list[int]]:
    """Where both sides are alike torch's own operators pad."""
    if start == end:
        return x, start
    both = [p for pair in reversed(list(zip(start, end, strict=True))) for p in pair]
    return b.call(F.pad, x, both, "constant", fill), [0] * len(start)


@operator("Conv")
def _conv(b: Builder, node: Node, inputs: list[Any]) -> Any:
    rank = inputs[0].rank - 2
    strides, dilations, start, end = _geometry(b, node, rank)
    x, weight, bias = b.heavy(*inputs[:2], optional(inputs, 2))
    x, pads = _padded(b, x, start, end)
    fn = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return b.call(fn, x, weight, bias, strides, pads, dilations, node.attributes.get("group", 1))


@operator("ConvTranspose")
def _conv_transpose(b: Builder, node: Node, inputs: list[Any]) -> Any:
    rank = inputs[0].rank - 2
    strides, dilations, start, end = _geometry(b, node, rank)
    if start != end or "output_shape" in node.attributes:
        raise b.refuse("ConvTranspose with the same pads on both sides", f"pads {start} and {end}")
    extra = node.attributes.get("output_padding", [0] * rank)
    fn = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    x, weight, bias = b.heavy(*inputs[:2], optional(inputs, 2))
    return b.call(fn, x, weight, bias, strides, start, extra, node.attributes.get("group", 1), dilations)


@operator("AveragePool", "MaxPool")
def _pool(b: Builder, node: Node, inputs: list[Any]) -> Any:
    x, rank = inputs[0], inputs[0].rank - 2
    strides, dilations, start, end = _geometry(b, node, rank)
    kernel, ceil = node.attributes["kernel_shape"], bool(node.attributes.get("ceil_mode"))
    if node.op == "MaxPool":
        x, pads = _padded(b, x, start, end, float("-inf"))
        return b.call((F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1], x, kernel, strides, pads, dilations, ceil)
    if start != end or any(d != 1 for d in dilations):
        raise b.refuse("AveragePool with the same pads on both sides and no dilation", f"pads {start} and {end}")
    counts = bool(node.attributes.get("count_include_pad"))
    return b.call((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1], x, kernel, strides, start, ceil, counts)


@operator("GlobalAveragePool")
def _global_average(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(torch.mean, inputs[0], list(range(2, inputs[0].rank)), True)


# ---- norms


@operator("InstanceNormalization")
def _instance_norm(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(functions.instance_norm, *inputs, node.attributes.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(b: Builder, node: Node, inputs: list[Any]) -> Any:
    x, weight, bias = inputs
    groups, channels = node.attributes["num_groups"], x.pair[0].shape[1]
    if weight.pair[0].numel() == groups != channels:  # opset 18: of a group; from 21 on: of a channel
        weight, bias = (b.call(torch.repeat_interleave, v, channels // groups) for v in (weight, bias))
    return b.call(functions.group_norm, x, groups, weight, bias, node.attributes.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(b: Builder, node: Node, inputs: list[Any]) -> Any:
    axis = node.attributes.get("axis", -1)
    return b.call(
        functions.layer_norm, inputs[0], axis, inputs[1], optional(inputs, 2), node.attributes.get("epsilon", 1e-5)
    )


@operator("BatchNormalization")
def _batch_norm(b: Builder, node: Node, inputs: list[Any]) -> Any:
    x, weight, bias, mean, variance = inputs[:5]
    scale = b.call(functions.batch_norm_scale, weight, variance, node.attributes.get("epsilon", 1e-5))
    shift = b.call(torch.sub, bias, b.call(torch.mul, mean, scale))
    scale, shift = (b.call(torch.reshape, v, [-1, *[1] * (x.rank - 2)]) for v in (scale, shift))
    return b.call(torch.add, *b.matched(b.call(torch.mul, *b.matched(x, scale)), shift))


@operator("Softmax")
def _softmax(b: Builder, node: Node, inputs: list[Any]) -> Any:
    return b.call(functions.softmax, inputs[0], node.attributes.get("axis", -1))
