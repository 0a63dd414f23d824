"""The named tensors of a call, `cond=` and `negative=`, as the extension takes them. The engine checks names, lengths and values."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import arrays
from .errors import OptionError, ShapeError

Given = tuple[str, np.ndarray, int, list[int]]  # name, values of all arrays side by side, their count, their lengths


def of_call(value: Any, field: str, n: int, known: Mapping[str, Mapping[str, Any]]) -> list[Given] | None:
    """{name: array} -> what the extension reads; None: not given.

    value: by name float32 [*shape], for all images, or [n, *shape]; of a sequence [L, *shape], [n, L, *shape], or a list of n arrays
        [L_i, *shape]. Numbers and lists of numbers where shape is []. known: `Engine.info()["conditions"]`.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise OptionError(f"{field}: expected a mapping of names and arrays, got {type(value).__name__}")
    found = []
    for name, given in value.items():
        if name not in known:
            raise OptionError(f"{field}: expected names among {', '.join(known) or 'none: this plan has no conditions'}; got {name!r}")
        found.append((name, *_arrays(given, f"{field}.{name}", n, known[name])))
    return found


def _arrays(value: Any, field: str, n: int, about: Mapping[str, Any]) -> tuple[np.ndarray, int, list[int]]:
    is_sequence = about["max_length"] is not None
    rank = len(about["shape"]) + is_sequence
    if isinstance(value, (list, tuple)):
        each = [_float32(v, f"{field}[{i}]") for i, v in enumerate(value)]
        if len(each) not in (1, n):
            raise ShapeError(f"{field}: expected 1 array or {n} (one per image), got {len(each)}")
    else:
        array = _float32(value, field)
        if array.ndim == rank + 1:
            if len(array) not in (1, n):
                raise ShapeError(f"{field}: expected 1 array or {n} (one per image), got {list(array.shape)}")
            each = list(array)
        else:
            each = [array]
    for i, array in enumerate(each):
        _check_shape(array, field if len(each) == 1 else f"{field}[{i}]", n, about)
    lengths = [len(array) for array in each] if is_sequence else []
    return np.concatenate([array.ravel() for array in each]), len(each), lengths


def _float32(value: Any, field: str) -> np.ndarray:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return np.asarray(arrays.number(value, field), np.float32)
    return arrays.float32(value, field)


def _check_shape(array: np.ndarray, field: str, n: int, about: Mapping[str, Any]) -> None:
    shape: Sequence[int] = about["shape"]
    is_sequence = about["max_length"] is not None
    if array.ndim == len(shape) + is_sequence and array.shape[array.ndim - len(shape) :] == tuple(shape):
        return
    wanted = ", ".join([*(["L"] if is_sequence else []), *map(str, shape)])
    raise ShapeError(f"{field}: expected float32 [{wanted}] for all images, or one for each of {n}, got {list(array.shape)}")
