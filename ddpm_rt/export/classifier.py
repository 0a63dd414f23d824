"""The gradient of a classifier as a graph without autograd, for classifier guidance (Dhariwal & Nichol 2105.05233 section 4.1).

torch's ONNX exporter refuses autograd. So the classifier is lowered to functional operators, its gradient is traced through
autograd at a free batch size, and what has no form in ONNX (`_REWRITTEN`) is written as operators that have one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import OptionError, PlanError

aten = torch.ops.aten


class WithGradient(nn.Module):
    """(x, t, label) -> [what `denoiser` gives | d log p(label | x) / dx], along the first axis of a sample; zero for the null label."""

    def __init__(self, denoiser: nn.Module, gradient: nn.Module, takes_label: bool):
        super().__init__()
        self.denoiser, self.gradient, self.takes_label = denoiser, gradient, takes_label

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        out = self.denoiser(x, t, label) if self.takes_label else self.denoiser(x, t)
        return torch.cat([out, self.gradient(x, t, label)], 1)


def load(path: str | os.PathLike[str]) -> nn.Module:
    """A program of (x, t) -> logits that torch.export.save wrote, with a free batch size."""
    try:
        return torch.export.load(os.fspath(path)).module()
    except Exception as e:  # of any class, by what is wrong with the file
        raise PlanError(
            f"classifier: expected a file of torch.export.save, got {path!s}: {(str(e).splitlines() or [''])[0][:200]}"
        ) from e


def gradient_of(classifier: nn.Module, x: Tensor, t: Tensor, classes: int, integer_time: bool) -> nn.Module:
    """(x, t, label) -> d log softmax(classifier(x, t))[label] / dx.

    Args:
        classifier: (x, t) -> logits [B, classes], x [B, *shape] float32, t [B] float32 (int64 with integer_time), in eval mode.
        x, t: two or more examples.
    """
    count = next(n for n in range(2, 100) if n not in x.shape[1:])  # the tracer takes equal sizes for the same one
    x, t = (v[torch.arange(count) % len(v)] for v in (x, t))
    batch = torch.export.Dim("batch")
    told = t.round().long() if integer_time else t
    try:
        program = torch.export.export(classifier, (x, told), dynamic_shapes=({0: batch}, {0: batch}), strict=False)
        lowered = program.run_decompositions().module()
        logits = lowered(x, told)
    except Exception as e:  # the module's own code, or torch's
        raise PlanError(f"classifier: expected a module of (x, t) that torch can export, got {_first_line(e)}") from e
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(x), classes):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise OptionError(f"classifier: expected logits [B, {classes}], got {found}")

    def gradient(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        told = t.round().long() if integer_time else t

        def chosen(x: Tensor) -> Tensor:
            log_p = torch.log_softmax(lowered(x, told).float(), 1)
            return (log_p * (label[:, None] == torch.arange(classes)).to(log_p.dtype)).sum()

        return torch.func.grad(chosen)(x)

    label = torch.arange(len(x)) % classes
    try:
        return make_fx(gradient, _table(), "symbolic", _allow_non_fake_inputs=True)(x, t, label)
    except _Unsupported as e:
        raise PlanError(f"classifier: {e}") from e
    except Exception as e:
        raise PlanError(f"classifier: expected operators whose gradients can be traced, got {_first_line(e)}") from e


class _Unsupported(Exception):
    pass


def _first_line(e: Exception) -> str:
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:300]}"


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, n: int, channels: int, _: int, groups: int, eps: float
) -> tuple[Tensor, ...]:
    y = x.reshape(n, groups, -1)
    mean = y.mean(-1, keepdim=True)
    off = y - mean
    rstd = (off * off).mean(-1, keepdim=True).add(eps).rsqrt()
    out, shape = (off * rstd).reshape(x.shape), [1, channels, *[1] * (x.dim() - 2)]
    out = out if weight is None else out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape), mean.squeeze(-1), rstd.squeeze(-1)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, _: Any, stride: list[int], padding: list[int], dilation: list[int], transposed: bool,
    __: Any, groups: int, mask: list[bool],
) -> tuple[Tensor | None, None, None]:  # fmt: skip
    """As a transposed convolution. The weight is cloned: OpenVINO 2026.4.1 goes wrong where the two share one initializer."""
    if transposed:
        raise _Unsupported("expected no transposed convolution in the classifier, got one: its gradient is not written")
    if not mask[0]:
        return None, None, None
    size = [(g - 1) * s - 2 * p + d * (k - 1) + 1 for g, s, p, d, k in
            zip(grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)]  # fmt: skip
    rest = [have - made for have, made in zip(x.shape[2:], size, strict=True)]
    return aten.convolution(grad, weight.clone(), None, stride, padding, dilation, True, rest, groups), None, None


def _avg_pool2d_backward(
    grad: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], *_: Any
) -> Tensor:
    (kh, kw), (b, c, h, w) = kernel, grad.shape
    if any(padding) or (stride and list(stride) != list(kernel)) or x.shape[2] != h * kh or x.shape[3] != w * kw:
        raise _Unsupported("expected average pooling over whole windows that do not overlap, got another")
    return grad[:, :, :, None, :, None].expand(b, c, h, kh, w, kw).reshape(b, c, h * kh, w * kw) / (kh * kw)


def _slice_backward(grad: Tensor, sizes: list[int], dim: int, start: int, _: int, step: int) -> Tensor:
    if step != 1:
        raise _Unsupported(f"expected slices of step 1, got {step}")
    dim %= len(sizes)
    start = start + sizes[dim] if start < 0 else start
    after = sizes[dim] - start - grad.shape[dim]
    return aten.constant_pad_nd(grad, [0, 0] * (len(sizes) - 1 - dim) + [start, after], 0.0)


def _select_backward(grad: Tensor, sizes: list[int], dim: int, index: int) -> Tensor:
    return _slice_backward(grad.unsqueeze(dim), sizes, dim, index, index + 1, 1)


_REWRITTEN: dict[Any, Callable[..., Any]] = {
    aten.native_group_norm.default: _group_norm,
    aten.convolution_backward.default: _convolution_backward,
    aten.avg_pool2d_backward.default: _avg_pool2d_backward,
    aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward,
}


def _table() -> dict[Any, Callable[..., Any]]:
    taken = [
        aten._log_softmax_backward_data, aten._softmax_backward_data, aten.native_group_norm_backward, aten.silu_backward,
        aten.native_layer_norm, aten.native_layer_norm_backward, aten.gelu_backward, aten.sigmoid_backward, aten.tanh_backward,
        aten.threshold_backward, aten.upsample_nearest2d_backward,
    ]  # fmt: skip
    return {**get_decompositions(taken), **_REWRITTEN}
