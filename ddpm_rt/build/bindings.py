"""TensorRT's Python bindings over a library found on this machine; nothing needs to be set or linked for it."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import importlib.util
import os
import pathlib
from typing import Any

from .. import backends
from ..errors import BackendError

# The metapackage imports the bindings from within; the bindings' own package is the name where it is not installed.
MODULES = {"tensorrt": ("tensorrt", "tensorrt_bindings"), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
INSTALL = 'pip install "ddpm_rt[tensorrt]"'


@dataclasses.dataclass(frozen=True)
class TensorRt:
    """The bindings' module with the library it works over. kind: "tensorrt" or "tensorrt_rtx"."""

    module: Any
    kind: str
    version: str
    path: str


def load(library: str | os.PathLike[str] | None = None) -> TensorRt:
    """The first library found whose bindings are installed; or the one at a path.

    Raises:
        BackendError: none found, no bindings for it, or bindings of another version.
    """
    if library is not None and not pathlib.Path(library).is_file():
        raise BackendError(
            f"library: expected libnvinfer.so.11 or libtensorrt_rtx.so.1, got no file at {os.fspath(library)!r}"
        )
    found = [backends.tensorrt_at(library)] if library is not None else backends.tensorrt_libraries()
    if not found:
        raise BackendError(
            "tensorrt: expected libnvinfer.so.11 or libtensorrt_rtx.so.1 on the loader's path or in an installed package, "
            f"got none; {INSTALL}"
        )
    for candidate in found:
        for name in MODULES[candidate.kind]:
            if importlib.util.find_spec(name) is not None:
                return _loaded(candidate, name)
    wanted = " or ".join(f"{MODULES[c.kind][-1]} for {c.path}" for c in found)
    raise BackendError(f"tensorrt: expected Python bindings to build with, {wanted}, got none installed; {INSTALL}")


def _loaded(library: backends.TensorRtLibrary, name: str) -> TensorRt:
    if library.parser is None:
        raise BackendError(f"tensorrt: expected an ONNX parser beside {library.path}, got none; {INSTALL}")
    try:
        for path in (library.path, library.parser):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # what the bindings link is then there, by its SONAME
        module = importlib.import_module(name)
    except (OSError, ImportError) as e:
        raise BackendError(f"tensorrt: expected {library.path} and {name} to load, got: {e}") from e
    version = library_version(library.path)
    check_version(module.__version__, version, name, str(library.path))
    return TensorRt(module, library.kind, version, str(library.path))


def library_version(path: str | os.PathLike[str]) -> str:
    """ "1.7.1.116" """
    library = ctypes.CDLL(str(path))
    try:
        parts = [getattr(library, f"getInferLib{part}Version")() for part in ("Major", "Minor", "Patch", "Build")]
    except AttributeError as e:
        raise BackendError(f"tensorrt: expected a TensorRT library, got {path}: {e}") from e
    return ".".join(map(str, parts))


def check_version(bindings: str, library: str, name: str, path: str) -> None:
    """The bindings call the library by the order of its methods, so both are of one release."""
    if bindings.split(".")[:3] != library.split(".")[:3]:
        raise BackendError(
            f"tensorrt: expected {name} of version {library}, as {path} is, got {bindings}; "
            f'pip install "{name.removesuffix("_bindings").replace("_", "-")}=={library}", or {INSTALL}'
        )
