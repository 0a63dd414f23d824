"""What callers hand in, as numpy arrays: DLPack, dtype and shape checks with messages that name the field."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import DeviceError, OptionError, ShapeError

_DLPACK_CPU = (1, 3)  # kDLCPU, kDLCUDAHost


def view(value: Any, field: str, *, writable: bool = False) -> np.ndarray:
    """A numpy view of an array or of any DLPack tensor on the CPU; never a copy of an array.

    Raises:
        ShapeError: not an array, or read-only where it is to be written.
        DeviceError: the tensor is not in the CPU's memory.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__dlpack__"):
        device = value.__dlpack_device__()
        if device[0] not in _DLPACK_CPU:
            raise DeviceError(f"{field}: expected a tensor on the CPU, got DLPack device {tuple(map(int, device))}")
        if getattr(value, "requires_grad", False):
            value = value.detach()
        try:
            array = np.from_dlpack(value)
        except (RuntimeError, BufferError) as e:  # bfloat16, which text encoders like
            raise ShapeError(f"{field}: expected a type that numpy has, got {getattr(value, 'dtype', 'another')}: {e}") from e
        if writable and not array.flags.writeable and hasattr(value, "numpy"):
            array = value.numpy()  # numpy takes unversioned DLPack as read-only
    else:
        raise ShapeError(f"{field}: expected a numpy array or a DLPack tensor, got {type(value).__name__}")
    if writable and not array.flags.writeable:
        raise ShapeError(f"{field}: expected a writable array, got a read-only one")
    return array


def float32(value: Any, field: str, shape: Sequence[int] | None = None, *, writable: bool = False) -> np.ndarray:
    """A C-contiguous float32 array; `writable` ones must be so already, others are copied if they are strided.

    Raises:
        ShapeError: another dtype or shape (nothing is converted silently).
    """
    array = view(value, field, writable=writable)
    wanted = f"float32 {list(shape)}" if shape is not None else "float32"
    if array.dtype != np.float32 or (shape is not None and array.shape != tuple(shape)):
        raise ShapeError(f"{field}: expected {wanted}, got {array.dtype} {list(array.shape)}")
    if array.flags.c_contiguous:
        return np.asarray(array)
    if writable:
        raise ShapeError(f"{field}: expected C-contiguous memory, got strides {array.strides}")
    return np.ascontiguousarray(array)


def like(array: np.ndarray, source: Any) -> Any:
    """`array` in the framework of `source`, sharing memory."""
    module = sys.modules.get(type(source).__module__.partition(".")[0])
    if isinstance(source, np.ndarray) or not hasattr(module, "from_dlpack"):
        return array
    return module.from_dlpack(array)


def integer(value: Any, field: str, low: int, high: int) -> int:
    """An int in [low, high]; booleans and floats are refused."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise OptionError(f"{field}: expected an integer from {low} to {high}, got {value!r}")
    return number


def number(value: Any, field: str) -> float:
    """A finite float."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = float("nan")
    if not np.isfinite(result):
        raise OptionError(f"{field}: expected a finite number, got {value!r}")
    return result


def consecutive_seeds(first: int, n: int) -> np.ndarray:
    """first + i mod 2^64  -> uint64 [n]"""
    return np.array([(first + i) % 2**64 for i in range(n)], np.uint64)


def seeds(value: Any, field: str = "seeds") -> np.ndarray:
    """Integers of 0 to 2^64 - 1 -> uint64 [n]"""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        raise OptionError(f"{field}: expected a sequence of integers, got {value!r}")
    if isinstance(value, np.ndarray) and value.dtype == np.uint64 and value.ndim == 1:
        return np.ascontiguousarray(value)  # every value is in range: a check of each would cost more than the step
    return np.array([integer(v, f"{field}[{i}]", 0, 2**64 - 1) for i, v in enumerate(value)], np.uint64)
