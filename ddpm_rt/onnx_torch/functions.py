"""What the built modules call beside torch's own functions. Norms and softmax compute in float32 and return x's dtype."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F


def group_norm(x: torch.Tensor, groups: int, weight, bias, eps: float) -> torch.Tensor:
    """Wu & He 1803.08494 eq. 1. x [B, C, ...]; weight, bias [C] or None."""
    weight, bias = (None if t is None else t.float() for t in (weight, bias))
    return F.group_norm(x.float(), groups, weight, bias, eps).to(x.dtype)


def group_norm_silu(x: torch.Tensor, groups: int, weight, bias, eps: float, scale=None, shift=None) -> torch.Tensor:
    """silu(group_norm(x) (1 + scale) + shift): one kernel where Triton and channels-last memory allow, else torch's operators.

    Args: scale, shift: [B, C, 1, ...] both, or neither.
    """
    if x.is_cuda and x.dim() == 4 and _fused() is not None and x.is_contiguous(memory_format=torch.channels_last):
        flat = {} if scale is None else {"scale": scale.flatten(1).contiguous(), "shift": shift.flatten(1).contiguous()}
        return _fused()(x, groups, weight, bias, eps=eps, **flat)
    y = group_norm(x, groups, weight, bias, eps)
    return F.silu(y if scale is None else y * (1 + scale) + shift).to(x.dtype)


@functools.cache
def _fused():
    try:
        import triton  # noqa: F401

        from ..kernels.triton import groupnorm_silu
    except ImportError:
        return None
    return groupnorm_silu


def instance_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    return group_norm(x, x.shape[1], weight, bias, eps)


def layer_norm(x: torch.Tensor, axis: int, weight, bias, eps: float) -> torch.Tensor:
    shape = x.shape[axis:]
    weight, bias = (None if t is None else t.float().reshape(shape) for t in (weight, bias))
    return F.layer_norm(x.float(), shape, weight, bias, eps).to(x.dtype)


def softmax(x: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.softmax(x, axis, dtype=torch.float32).to(x.dtype)


def attention(q: torch.Tensor, k_transposed: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T) v of what is scaled already."""
    return F.scaled_dot_product_attention(q, k_transposed.transpose(-1, -2), v, scale=1.0)


def gemm(a: torch.Tensor, b: torch.Tensor, c, alpha: float, beta: float) -> torch.Tensor:
    if alpha == 1.0 and beta == 1.0 and c is not None and c.dim() == 1:
        return torch.addmm(c, a, b)
    product = a @ b if alpha == 1.0 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1.0 else beta * c)


def gather(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """ONNX Gather with indices from 0 on."""
    flat = torch.index_select(x, axis, index.reshape(-1))
    return flat.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def slice_along(x: torch.Tensor, axis: int, start: int, end: int, step: int) -> torch.Tensor:
    at = [slice(None)] * x.dim()
    at[axis] = slice(*slice(start, end, step).indices(x.shape[axis]))
    return x[tuple(at)]


def depth_to_space(x: torch.Tensor, block: int, is_crd: bool) -> torch.Tensor:
    if is_crd:
        return F.pixel_shuffle(x, block)
    b, c, h, w = x.shape
    parts = x.reshape(b, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(b, c // block**2, h * block, w * block)


def space_to_depth(x: torch.Tensor, block: int) -> torch.Tensor:
    b, c, h, w = x.shape
    parts = x.reshape(b, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(b, c * block**2, h // block, w // block)


def hard_sigmoid(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def batch_norm_scale(weight: torch.Tensor, variance: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * torch.rsqrt(variance + eps)


def arange(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)
