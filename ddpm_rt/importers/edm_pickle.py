"""A pickle of torch modules, read without running anything that it names.

EDM's files keep modules as (source code, class name, state), the source to be executed on loading. Here the source is thrown
away: an unpickler whose every global is one of a few inert stand-ins builds records of names, arguments and tensors. A global
outside of the list below is a PlanError, whatever it would have done.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PlanError


class Record:
    """A module of the file: `kind` its class's name, `state` its attributes. Never a real module."""

    kind = ""

    def __init__(self, *arguments: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:  # dict-like stand-ins
        pass

    def append(self, value: Any) -> None:
        pass

    @property
    def arguments(self) -> dict[str, Any]:
        """Of its construction, by name."""
        found = self.state.get("_init_kwargs")
        return dict(found) if isinstance(found, Mapping) else {}

    def children(self) -> Iterator[tuple[str, Record]]:
        modules = self.state.get("_modules")
        for name, child in (modules if isinstance(modules, Mapping) else {}).items():
            if isinstance(child, Record):
                yield str(name), child

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """As a state dict: parameters and buffers by their full names."""
        found = {}
        for kind in ("_parameters", "_buffers"):
            own = self.state.get(kind)
            for name, value in (own if isinstance(own, Mapping) else {}).items():
                if isinstance(value, Tensor):
                    found[f"{prefix}{name}"] = value
        for name, child in self.children():
            found |= child.tensors(f"{prefix}{name}.")
        return found


class _Names(dict):
    """dnnlib.EasyDict, as a dict."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)


def _persistent(meta: Any) -> Record:
    record = Record()
    if isinstance(meta, dict):
        record.kind = str(meta.get("class_name", ""))
        record.__setstate__(meta.get("state"))
    return record


def _storage(data: Any) -> Any:
    """The bytes of one storage, a file of torch.save by itself."""
    if not isinstance(data, bytes):
        raise pickle.UnpicklingError("expected the bytes of a storage")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, {}).detach()


def _parameter(data: Any, *rest: Any) -> Any:
    return data if isinstance(data, Tensor) else None


class _Ignored(Record):
    """Something of a known library that no network needs: options of a loss, a numpy scalar."""

    def __call__(self, *arguments: Any) -> _Ignored:
        return _Ignored()


def _dict(*arguments: Any) -> dict:
    return dict(*arguments)


_GLOBALS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _Names,
    ("collections", "OrderedDict"): _dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("builtins", "set"): set,
    ("builtins", "slice"): slice,
    ("__builtin__", "set"): set,
}
#: Libraries whose other globals become stand-ins that do nothing.
_INERT = ("torch.nn.", "numpy", "torch_utils.", "dnnlib.", "training.")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if f"{module}.".startswith(_INERT) or module.startswith("numpy"):
            return type(name, (_Ignored,), {"kind": name})
        raise pickle.UnpicklingError(f"{module}.{name}, which is not one of the names that a network's tensors need")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference to something outside of the file")


def load(path: Path) -> Any:
    """Plain values, tensors and `Record`s. PlanError where the file names anything else, or is damaged."""
    try:
        with path.open("rb") as f:
            return _Unpickler(f).load()
    except pickle.UnpicklingError as e:
        raise PlanError(
            f"{path}: expected tensors, plain values and known modules only, as nothing in a file is executed, got {e}"
        ) from e
    except OSError as e:
        raise PlanError(f"{path}: expected a file that can be read: {e.strerror}") from e
    except Exception as e:  # a damaged stream raises any of a dozen classes
        reason = (str(e).splitlines() or [""])[0][:200]
        raise PlanError(f"{path}: expected a pickle of an EDM network, got {type(e).__name__}: {reason}") from e
