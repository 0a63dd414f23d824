"""Where the backends' shared libraries lie in this environment. Looks them up; imports and loads nothing."""

from __future__ import annotations

import importlib.util
import os
import pathlib

# package -> patterns of its shared library, most specific system first
_LIBRARIES = {
    "openvino": ("libs/libopenvino_c.so*", "libs/libopenvino_c*.dylib", "libs/openvino_c.dll"),
    "onnxruntime": ("capi/libonnxruntime.so*", "capi/libonnxruntime*.dylib", "capi/onnxruntime.dll"),
}


def find_library(package: str) -> str | None:
    """Path of the C library that the installed wheel of `package` ("openvino" or "onnxruntime") carries, or None."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for pattern in _LIBRARIES[package]:
            found = sorted(pathlib.Path(folder).glob(pattern))
            if found:
                return str(found[-1])
    return None


def disable_telemetry() -> None:
    """ONNX Runtime's wheels upload usage data unless this is set before their library starts. A user's choice stands."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
