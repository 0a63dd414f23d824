"""The kernels on CUDA tensors of any DLPack producer, on the caller's stream (csrc/gpu_kernels.h)."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import _core
from ..errors import DeviceError, OptionError, ShapeError
from ._tensors import FLOATS

_DLPACK_GPU = (2, 13)  # kDLCUDA, kDLCUDAManaged
_TYPES = {(2, 32): 0, (2, 16): 1, (4, 16): 2}  # DLPack's (code, bits) -> eps_type of the C API
_NAMES = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16", (2, 64): "float64"}
_LEGACY_STREAM = 1  # CUDA's and DLPack's number of the default stream


def is_on_gpu(value: Any) -> bool:
    return not isinstance(value, np.ndarray) and hasattr(value, "__dlpack__") and value.__dlpack_device__()[0] in _DLPACK_GPU


def zeros_beside(value: Any) -> Callable[[Sequence[int], str], Any]:
    """(shape, dtype's name) -> zeros in the framework and on the device of `value`."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return lambda shape, dtype: torch.zeros(tuple(shape), dtype=getattr(torch, dtype), device=value.device)
    if hasattr(value, "__array_namespace__"):
        xp = value.__array_namespace__()
        return lambda shape, dtype: xp.zeros(tuple(shape), dtype=getattr(xp, dtype), device=value.device)
    raise OptionError(f"zeros: expected a function (shape, dtype's name) -> zeros for {type(value).__name__}, got None")


def current_stream(value: Any, device: int) -> int:
    """The stream that `value`'s framework works on now; the legacy default stream where it has none of its own."""
    framework = type(value).__module__.partition(".")[0]
    if framework == "torch":
        return sys.modules["torch"].cuda.current_stream(device).cuda_stream or _LEGACY_STREAM
    if framework == "cupy":
        return sys.modules["cupy"].cuda.get_current_stream().ptr or _LEGACY_STREAM
    return _LEGACY_STREAM


@functools.cache
def _kernels(device: int, library: str) -> Any:
    return _core.DeviceKernels(f"cuda:{device}", library)


class Call:
    """The tensors of one call: all on one GPU, read and written in the order of one stream."""

    def __init__(self, first: Any, stream: int | None, library: str | None) -> None:
        self.device = int(first.__dlpack_device__()[1])
        self.stream = current_stream(first, self.device) if stream is None else (int(stream) or _LEGACY_STREAM)
        self.kernels = _kernels(self.device, library or "")

    def tensor(self, value: Any, field: str, shape: Sequence[int] | None = None, *, dtypes: Sequence[str] = ("float32",)) -> Any:
        """`value`'s memory, held until the call is over.

        Raises:
            ShapeError, DeviceError
        """
        if value is None:
            return None
        if not is_on_gpu(value) or int(value.__dlpack_device__()[1]) != self.device:
            raise DeviceError(f"{field}: expected a tensor on cuda:{self.device} as the others are, got {_place(value)}")
        if getattr(value, "requires_grad", False):
            value = value.detach()
        held = _core.DeviceTensor(value.__dlpack__(stream=self.stream))
        name = _NAMES.get(held.dtype, "another dtype")
        if name not in dtypes or (shape is not None and held.shape != list(shape)):
            wanted = " or ".join(dtypes) + ("" if shape is None else f" {list(shape)}")
            raise ShapeError(f"{field}: expected {wanted}, got {name} {held.shape}")
        return held


def _place(value: Any) -> str:
    place = value.__dlpack_device__() if hasattr(value, "__dlpack_device__") else type(value).__name__
    return f"DLPack device {tuple(map(int, place))}" if isinstance(place, tuple) else str(place)


def _is_dense(held: Any, channels_last: bool) -> bool:
    order = list(range(len(held.shape)))
    if channels_last:
        order = [0, *order[2:], 1]
    dense = 1
    for axis in reversed(order):
        if held.shape[axis] != 1 and held.strides[axis] != dense:
            return False
        dense *= held.shape[axis]
    return True


def _expect_dense(held: Any, field: str) -> None:
    if held is not None and not _is_dense(held, False):
        raise ShapeError(f"{field}: expected C-contiguous memory, got strides {held.strides} for {held.shape}")


def _overlap(a: Any, b: Any) -> bool:
    def end(t: Any) -> int:
        return t.address + math.prod(t.shape) * t.dtype[1] // 8

    return a.address < end(b) and b.address < end(a)


def step(
    x: Any, out: Any, outputs: dict[str, Any], operands: dict[str, Any], state: Any, *, rows: np.ndarray, index: int,
    scale: float, scale2: float, seeds: np.ndarray, stream: int | None, library: str | None,
) -> None:  # fmt: skip
    """`kernels.step` after its checks of rows and seeds. outputs: of networks, in any of three dtypes, eps first."""
    call = Call(x, stream, library)
    target = call.tensor(x if out is None else out, "x" if out is None else "out")
    source = None if out is None else call.tensor(x, "x", target.shape)
    shape = target.shape
    if len(shape) < 2:
        raise ShapeError(f"x: expected [n, ...], got {shape}")
    if len(seeds) != shape[0]:
        raise ShapeError(f"seeds: expected {shape[0]}, got {len(seeds)}")
    if outputs["eps"] is None:
        raise ShapeError(f"eps: expected a tensor {shape}, got None")
    held = {name: call.tensor(value, name, shape, dtypes=FLOATS) for name, value in outputs.items()}
    rare = {name: call.tensor(value, name, shape) for name, value in operands.items()}
    kept = {} if state is None else {
        "history": call.tensor(state.history, "state.history", [3, *shape]),
        "anchor": call.tensor(state.anchor, "state.anchor", shape),
        "input": call.tensor(state.input, "state.input", shape),
        "x0": call.tensor(state.x0, "state.x0", shape),
        "kl": call.tensor(state.kl, "state.kl", shape[:1], dtypes=("float64",)),
    }  # fmt: skip
    for name, value in {"x": source, ("x" if out is None else "out"): target, **rare, **kept}.items():
        _expect_dense(value, name)
    given = [(name, value) for name, value in held.items() if value is not None]
    dtypes = {_NAMES[value.dtype] for _, value in given}
    if len(dtypes) > 1:
        raise ShapeError(f"eps: expected one dtype for {', '.join(name for name, _ in given)}, got {sorted(dtypes)}")
    channels_last = not all(_is_dense(value, False) for _, value in given)
    if channels_last and not all(_is_dense(value, True) for _, value in given):
        raise ShapeError("eps: expected every network output C-contiguous, or every one channels-last and dense")
    for name, value in (*given, *rare.items()):
        if value is not None and _overlap(value, target):
            raise OptionError(f"{name}: expected memory of its own, got some of the output's")
    call.kernels.step(
        target, source, held["eps"], held["eps_uncond"], _TYPES[held["eps"].dtype], channels_last, rows, index, scale, seeds,
        kept.get("history"), 0 if state is None else state.ring, kept.get("anchor"), kept.get("input"), kept.get("x0"),
        held["eps_guide"], scale2, held["variance"], held["grad"], rare["known"], rare["mask"], rare["x0_true"], kept.get("kl"),
        shape[1], math.prod(shape[2:]), call.stream,
    )  # fmt: skip


def cfg_combine(
    cond: Any, uncond: Any, scales: np.ndarray, rescale: float, out: Any, stream: int | None, library: str | None
) -> Any:
    call = Call(cond, stream, library)
    c = call.tensor(cond, "cond", dtypes=FLOATS)
    if len(c.shape) < 2:
        raise ShapeError(f"cond: expected [n, ...], got {c.shape}")
    if len(scales) not in (1, c.shape[0]):
        raise ShapeError(f"scale: expected 1 or {c.shape[0]} numbers, got {len(scales)}")
    dtype = _NAMES[c.dtype]
    result = zeros_beside(cond)(c.shape, dtype) if out is None else out
    u, target = (call.tensor(value, name, c.shape, dtypes=(dtype,)) for name, value in (("uncond", uncond), ("out", result)))
    for name, value in {"cond": c, "uncond": u, "out": target}.items():
        _expect_dense(value, name)
    each = np.broadcast_to(scales, c.shape[0]).copy()
    call.kernels.cfg_combine(c, u, each, rescale, _TYPES[c.dtype], math.prod(c.shape[1:]), target, call.stream)
    return result
