"""What callers of the Triton kernels hand in: torch tensors, checked with messages that name the field."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arrays
from ..errors import BackendError, DeviceError, OptionError, ShapeError

if TYPE_CHECKING:
    import torch

FLOATS = ("float32", "float16", "bfloat16")
FLOAT32 = ("float32",)
MOST_ELEMENTS = 2**30  # of a sample: offsets inside it are 32 bits


@functools.cache
def framework() -> Any:
    """torch.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import torch
    except ImportError as e:
        raise BackendError(f"torch: expected to be installed (pip install 'ddpm_rt[triton]'), got {e}") from e
    return torch


@functools.cache
def _kernels() -> tuple[Any, bool]:
    """(the package of the kernels, do they run in Triton's interpreter)"""
    try:
        import triton

        from . import _triton
        from ._triton import groupnorm_silu_triton, philox_triton, step_triton  # noqa: F401  (attributes of _triton)
    except ImportError as e:
        raise BackendError(f"triton: expected to be installed (pip install 'ddpm_rt[triton]'), got {e}") from e
    return _triton, not isinstance(_triton.step_triton.step_kernel, triton.JITFunction)


def expect_rounding(capability: tuple[int, int], version: str) -> None:
    """BackendError where Triton's assembler contracts: ptxas 12.9, in Triton up to 3.6, turns mul.rn.f32x2 and
    add.rn.f32x2, which only compute capability 10 and above has, into one fused operation, whatever it is told."""
    if capability >= (10, 0) and tuple(int(n) for n in version.split(".")[:2]) < (3, 7):
        raise BackendError(
            f"triton: expected 3.7 or newer on compute capability {capability[0]}.{capability[1]}, since the assembler of "
            f"older ones does not round every product, got {version}"
        )


@functools.cache
def _expect_rounding_on(device: torch.device) -> None:
    import triton

    expect_rounding(framework().cuda.get_device_capability(device), triton.__version__)


def kernels_for(device: torch.device, field: str, *, exact: bool = True) -> Any:
    """The package of the kernels. `exact`: for kernels whose bits are promised.

    Raises:
        DeviceError: they cannot run on `device`.
        BackendError: Triton is not installed, or would change their bits there.
    """
    kernels, is_interpreted = _kernels()
    if device.type == "cuda" and exact and not is_interpreted:
        _expect_rounding_on(device)
    if device.type == "cuda" or (is_interpreted and device.type == "cpu"):
        return kernels
    raise DeviceError(
        f"{field}: expected a CUDA device (or the CPU, with TRITON_INTERPRET=1 before triton is imported), got {device}"
    )


def current_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device: makes `device` it."""
    torch = framework()
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def tensor(
    value: Any,
    field: str,
    shape: Sequence[int] | None = None,
    dtypes: Sequence[str] = FLOATS,
    device: torch.device | None = None,
) -> torch.Tensor:
    """`value`, a tensor of one of `dtypes`.

    Raises:
        ShapeError: not a tensor, another dtype or shape (nothing is converted silently).
        DeviceError: it is not on `device`.
        OptionError: a gradient is wanted through it.
    """
    torch = framework()
    if not isinstance(value, torch.Tensor):
        raise ShapeError(f"{field}: expected a torch tensor, got {type(value).__name__}")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in dtypes or (shape is not None and tuple(value.shape) != tuple(shape)):
        wanted = " or ".join(dtypes) + ("" if shape is None else f" {list(shape)}")
        raise ShapeError(f"{field}: expected {wanted}, got {dtype} {list(value.shape)}")
    if device is not None and value.device != device:
        raise DeviceError(f"{field}: expected a tensor on {device}, got one on {value.device}")
    if value.requires_grad and torch.is_grad_enabled():
        raise OptionError(f"{field}: expected a tensor without gradient (torch.no_grad()), got one that requires it")
    return value


def batch(x: torch.Tensor, field: str, halves: int = 1) -> tuple[int, int, int]:
    """(samples, channels, pixels) of [n, channels, ...]; `halves`: how many times the elements a network's output has."""
    if x.ndim < 2:
        raise ShapeError(f"{field}: expected [n, ...], got {list(x.shape)}")
    elements = math.prod(x.shape[1:])
    if not 1 <= elements <= MOST_ELEMENTS // halves or x.shape[0] * elements >= 2**40:
        raise ShapeError(
            f"{field}: expected 1 to {MOST_ELEMENTS // halves} elements per sample and fewer than 2^40, got {list(x.shape)}"
        )
    return x.shape[0], x.shape[1], elements // x.shape[1]


def channels_last_format(t: torch.Tensor) -> torch.memory_format | None:
    """The format in which t is dense and channels-last, if it is."""
    torch = framework()
    wanted = {4: torch.channels_last, 5: torch.channels_last_3d}.get(t.ndim)
    return wanted if wanted is not None and t.is_contiguous(memory_format=wanted) else None


def is_channels_last(tensors: Mapping[str, torch.Tensor | None]) -> bool:
    """Whether all are dense in channels-last memory rather than contiguous; they are all one or all the other.

    Raises:
        ShapeError: they are not.
    """
    given = {field: t for field, t in tensors.items() if t is not None}
    strided = [field for field, t in given.items() if not t.is_contiguous()]
    if not strided:
        return False
    odd = [field for field, t in given.items() if channels_last_format(t) is None]
    if not odd:
        return True
    field = next((field for field in strided if field in odd), strided[0])
    raise ShapeError(
        f"{field}: expected contiguous or channels-last memory, the same for all tensors of a call, got strides "
        f"{given[field].stride()} of {list(given[field].shape)}"
    )


def expect_apart(writes: Mapping[str, torch.Tensor | None], reads: Mapping[str, torch.Tensor | None]) -> None:
    """OptionError where a tensor that is written shares memory with any other (dense tensors)."""

    def spans(tensors: Mapping[str, torch.Tensor | None]) -> list[tuple[int, int, str]]:
        given = [(field, t) for field, t in tensors.items() if t is not None]
        return [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), field) for field, t in given]

    written = spans(writes)
    others = spans(reads) + written
    for begin, end, field in written:
        for other_begin, other_end, other in others:
            if begin < other_end and other_begin < end and field != other:
                raise OptionError(f"{other}: expected memory of its own, got some of {field}'s")


def float32_number(value: Any, field: str) -> float:
    """A number that is finite in float32."""
    with np.errstate(over="ignore"):
        rounded = np.float32(arrays.number(value, field))
    return arrays.number(rounded, field)


def seed_bits(value: Any, count: int, device: torch.device) -> int | torch.Tensor:
    """uint64 seeds as the bits of int64: [n] on the device, or of an integer the first, from which they count up."""
    torch = framework()
    if isinstance(value, torch.Tensor):
        keys = tensor(value, "seeds", None, ("int64", "uint64"), device).view(torch.int64)
    elif np.ndim(value) == 0:
        first = arrays.integer(value, "seeds", 0, 2**64 - 1)
        return first - 2**64 if first >= 2**63 else first
    else:
        keys = torch.from_numpy(arrays.seeds(value).view(np.int64)).to(device)
    if tuple(keys.shape) != (count,):
        raise ShapeError(f"seeds: expected {count}, got {list(keys.shape)}")
    return keys.contiguous()


def scales(value: Any, count: int, device: torch.device) -> float | torch.Tensor:
    """One finite number, or float32 [n] on the device; what is on a device already is not looked at."""
    torch = framework()
    if isinstance(value, torch.Tensor):
        tensor(value, "scale", (count,) if value.ndim else (), FLOAT32, device)
        return value.expand(count).contiguous()
    values = [float32_number(v, "scale") for v in np.atleast_1d(np.asarray(value))]
    if len(values) not in (1, count):
        raise ShapeError(f"scale: expected 1 or {count} numbers, got {len(values)}")
    return values[0] if len(values) == 1 else torch.tensor(values, dtype=torch.float32, device=device)
