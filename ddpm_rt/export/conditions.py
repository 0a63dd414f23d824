"""Tensors of a request beside labels: what the manifest says of them, and examples for the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import OptionError

_KEYS: dict[str, Any] = {
    "dtype": "float32", "shape": [], "max_length": None, "mask": False, "role": "vector", "null": "zero",
}  # fmt: skip
_VALUES = {"dtype": ("float32",), "mask": (True, False), "role": ("text", "vector", "map"), "null": ("zero", "same", None)}
_TAKEN = ("x", "t", "label", "rows", "eps")


def checked(given: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """name -> entry of the manifest, every key there, sorted by name as the self-test is. OptionError naming the key.

    shape: of the tensor, or of one entry of a sequence of at most max_length. mask: a sequence has one beside it, 1 for entries
    that count, as the input NAME_mask. null: "zero" means no condition; or "same": guidance keeps the request's own, as of a
    small image; or None: a request has to say what means none.
    """
    found = {}
    for name, own in sorted((given or {}).items(), key=lambda item: str(item[0])):
        if not str(name).isidentifier() or not str(name).isascii() or name in _TAKEN:
            raise OptionError(f"conditions: expected names other than {', '.join(_TAKEN)}, got {name!r}")
        for key, value in own.items():
            if key not in _KEYS:
                raise OptionError(f"conditions.{name}.{key}: expected one of {', '.join(_KEYS)}, got an unknown one")
            if key in _VALUES and value not in _VALUES[key]:
                raise OptionError(f"conditions.{name}.{key}: expected one of {', '.join(map(str, _VALUES[key]))}, got {value!r}")
        entry = _KEYS | dict(own)
        sizes = [*entry["shape"], *([] if entry["max_length"] is None else [entry["max_length"]])]
        if not all(isinstance(s, int) and s > 0 for s in sizes):
            raise OptionError(f"conditions.{name}: expected whole sizes above 0, got shape {entry['shape']}, max_length {entry['max_length']}")
        if entry["mask"] and entry["max_length"] is None:
            raise OptionError(f"conditions.{name}.mask: expected it with max_length, got none")
        found[name] = entry | {"shape": list(entry["shape"])}
    for name, entry in found.items():
        if entry["mask"] and f"{name}_mask" in found:
            raise OptionError(f"conditions.{name}_mask: expected another name than that of {name}'s mask, got it")
    return found


def inputs_of(conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Role -> shape behind the batch, of each condition and of its mask behind it."""
    found = {}
    for name, c in conditions.items():
        length = [] if c["max_length"] is None else [c["max_length"]]
        found[name] = [*length, *c["shape"]]
        if c["mask"]:
            found[f"{name}_mask"] = length
    return found


def examples(conditions: Mapping[str, Mapping[str, Any]], count: int) -> dict[str, np.ndarray]:
    """Unit noise for each, float32 [count, (max_length,) *shape]; masks [count, max_length] of different lengths."""
    rng, found = np.random.default_rng(1), {}
    for role, shape in inputs_of(conditions).items():
        if role in conditions:
            found[role] = rng.standard_normal((count, *shape)).astype(np.float32)
        else:
            ends = np.linspace(1, shape[0], count).round()
            found[role] = (np.arange(shape[0]) < ends[:, None]).astype(np.float32)
    return found
