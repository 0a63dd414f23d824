"""What exporters take apart, put together again: SiLU, GroupNorm, attention, and GroupNorm with SiLU behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from . import functions
from .builder import to_dtype


def fuse(graph: fx.Graph, root: torch.nn.Module) -> None:
    for match in (_silu, _group_norm, _attention, _group_norm_silu):
        for node in list(graph.nodes):
            made = match(node, root)
            if made is None:
                continue
            fn, args = made
            with graph.inserting_before(node):
                fused = graph.call_function(fn, args)
            fused.meta = dict(node.meta)
            node.replace_all_uses_with(fused)
            graph.erase_node(node)
            graph.eliminate_dead_code()


def _is(node: Any, fn: Callable[..., Any]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is fn


def _operands(node: Any, fn: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
    """Both orders of a commutative operator's operands."""
    if _is(node, fn):
        a, b = node.args[:2]
        yield a, b
        yield b, a


def _constant(node: Any, root: torch.nn.Module) -> torch.Tensor | None:
    if isinstance(node, fx.Node) and node.op == "get_attr":
        return getattr(root, node.target)
    return None


def _silu(node: fx.Node, root: torch.nn.Module) -> Any:
    for gate, x in _operands(node, torch.mul):
        if _is(gate, torch.sigmoid) and gate.args[0] is x and len(gate.users) == 1:
            return F.silu, (x,)
    return None


def _per_channel(node: Any, root: torch.nn.Module, channels: int, rank: int) -> torch.Tensor | None:
    """A constant [C, 1, ...] or [1, C, 1, ...] that scales channels of a tensor of this rank."""
    value = _constant(node, root)
    if value is None:
        return None
    shape = (1,) * (rank - value.dim()) + tuple(value.shape)
    is_right = shape == (1, channels, *(1,) * (rank - 2))
    return value if is_right else None


def _group_norm(node: fx.Node, root: torch.nn.Module) -> Any:
    """Reshape to [B, G, rest], InstanceNormalization with weight 1 and bias 0, reshape back, and the affine part."""
    for scaled, bias in _operands(node, torch.add):
        for back, weight in _operands(scaled, torch.mul):
            if not _is(back, torch.reshape) or len(scaled.users) != 1 or len(back.users) != 1:
                continue
            norm = back.args[0]
            if not _is(norm, functions.instance_norm) or len(norm.users) != 1 or not _is(norm.args[0], torch.reshape):
                continue
            grouped, ones, zeros, eps = norm.args
            x = grouped.args[0]
            if "pair" not in x.meta or "pair" not in back.meta or "pair" not in grouped.meta:
                continue
            before, after = x.meta["pair"][0].shape, back.meta["pair"][0].shape
            groups, channels, rank = grouped.meta["pair"][0].shape[1], before[1], len(before)
            one, zero = _constant(ones, root), _constant(zeros, root)
            if before != after or one is None or zero is None or not (one == 1).all() or not (zero == 0).all():
                continue
            w, b = (_per_channel(part, root, channels, rank) for part in (weight, bias))
            if w is None or b is None or channels % groups:
                continue
            flat = [_flattened(part, root) for part in (weight, bias)]
            return functions.group_norm, (x, groups, *flat, eps)
    return None


def _flattened(node: fx.Node, root: torch.nn.Module) -> fx.Node:
    """[C] of a constant, in float32: the norm reads it so, and as it was before the rest left float32."""
    name = f"{node.target}_flat"
    if not hasattr(root, name):
        root.register_buffer(name, node.meta["exact"].reshape(-1).float())
    with node.graph.inserting_after(node):
        return node.graph.get_attr(name)


def _attention(node: fx.Node, root: torch.nn.Module) -> Any:
    if not _is(node, torch.matmul):
        return None
    weights, v = node.args[:2]
    if not _is(weights, functions.softmax) or len(weights.users) != 1:
        return None
    scores, axis = weights.args
    if not _is(scores, torch.matmul) or len(scores.users) != 1:
        return None
    rank = scores.meta["pair"][0].dim()
    if axis not in (-1, rank - 1) or rank < 3:
        return None
    return functions.attention, (*scores.args[:2], v)


def _group_norm_silu(node: fx.Node, root: torch.nn.Module) -> Any:
    if not _is(node, F.silu) or len(node.args[0].users) != 1:
        return None
    if _is(node.args[0], functions.group_norm):
        return functions.group_norm_silu, node.args[0].args
    for scaled, shift in _operands(node.args[0], torch.add):  # FiLM between them: norm (1 + scale) + shift
        for norm, gain in _operands(scaled, torch.mul):
            if not _is(norm, functions.group_norm) or len(norm.users) != 1 or len(scaled.users) != 1:
                continue
            shift = _uncast(shift)
            for scale, one in _operands(_uncast(gain), torch.add):
                value = _constant(one, root)
                if (
                    value is not None
                    and (value == 1).all()
                    and _is_per_sample(scale, norm)
                    and _is_per_sample(shift, norm)
                ):
                    return functions.group_norm_silu, (*norm.args, scale, shift)
    return None


def _uncast(node: Any) -> Any:
    """What was cast: scale and shift come from the time, in float32, and the kernel reads them so."""
    return node.args[0] if _is(node, to_dtype) else node


def _is_per_sample(node: Any, norm: fx.Node) -> bool:
    """[B, C, 1, ...] beside a norm over [B, C, ...]."""
    if not isinstance(node, fx.Node) or "pair" not in node.meta or "pair" not in norm.meta:
        return False
    return all(
        tuple(a.shape) == (*b.shape[:2], *(1,) * (b.dim() - 2))
        for a, b in zip(node.meta["pair"], norm.meta["pair"], strict=True)
    )
