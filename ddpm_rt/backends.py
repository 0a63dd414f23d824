"""Where the backends' shared libraries lie on this machine. Looks them up; imports and loads nothing."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Iterator

# package -> patterns of its shared library, most specific system first
_LIBRARIES = {
    "openvino": ("libs/libopenvino_c.so*", "libs/libopenvino_c*.dylib", "libs/openvino_c.dll"),
    "onnxruntime": ("capi/libonnxruntime.so*", "capi/libonnxruntime*.dylib", "capi/onnxruntime.dll"),
}

# kind -> name of the library, of its ONNX parser, and the packages that carry them
_TENSORRT = {
    "tensorrt": ("libnvinfer.so.11", "libnvonnxparser.so.11", ("tensorrt_libs",)),
    "tensorrt_rtx": (
        "libtensorrt_rtx.so.1",
        "libtensorrt_onnxparser_rtx.so.1",
        ("tensorrt_rtx_libs", "onnxruntime_ep_nv_tensorrt_rtx"),
    ),
}
_SYSTEM_FOLDERS = (
    "/usr/local/lib",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/tensorrt/lib",
    "/opt/tensorrt/lib",
)


def find_library(package: str) -> str | None:
    """Path of the C library that the installed wheel of `package` ("openvino" or "onnxruntime") carries, or None."""
    for folder in _package_folders(package):
        for pattern in _LIBRARIES[package]:
            found = sorted(folder.glob(pattern))
            if found:
                return str(found[-1])
    return None


@dataclasses.dataclass(frozen=True)
class TensorRtLibrary:
    """kind: "tensorrt" or "tensorrt_rtx". parser: its ONNX parser beside it, which only building needs; or None."""

    kind: str
    path: pathlib.Path
    parser: pathlib.Path | None


def tensorrt_libraries() -> list[TensorRtLibrary]:
    """Every TensorRT 11 and TensorRT-RTX 1 found, the preferred one first: the machine's before those in wheels."""
    system = list(_system_folders())
    found: dict[pathlib.Path, TensorRtLibrary] = {}
    for is_wheel in (False, True):
        for kind, (_, _, packages) in _TENSORRT.items():
            folders = [f for p in packages for f in _package_folders(p)] if is_wheel else system
            for folder in folders:
                library = _tensorrt_in(kind, folder)
                if library is not None:
                    found.setdefault(library.path.resolve(), library)
    return list(found.values())


def tensorrt_at(path: str | os.PathLike[str]) -> TensorRtLibrary:
    """The library at a path the user gives; its kind is told by its name."""
    file = pathlib.Path(path)
    kind = "tensorrt_rtx" if "rtx" in file.name else "tensorrt"
    return TensorRtLibrary(kind, file, _newest(file.parent, _TENSORRT[kind][1]))


def _tensorrt_in(kind: str, folder: pathlib.Path) -> TensorRtLibrary | None:
    library, parser, _ = _TENSORRT[kind]
    path = _newest(folder, library)
    return None if path is None else TensorRtLibrary(kind, path, _newest(folder, parser))


def _newest(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """`name` itself, as an installation links it, else the latest NAME.x.y, as wheels carry it."""
    if (folder / name).is_file():
        return folder / name

    def version(path: pathlib.Path) -> list[int]:
        return [int(part) for part in path.name[len(name) :].split(".") if part.isdigit()]

    return max(folder.glob(f"{name}.*"), key=version, default=None)


def _package_folders(package: str) -> list[pathlib.Path]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    return [pathlib.Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _system_folders() -> Iterator[pathlib.Path]:
    """Where the loader looks: LD_LIBRARY_PATH, what /etc/ld.so.conf.d adds, and the usual places."""
    yield from (pathlib.Path(f) for f in os.environ.get("LD_LIBRARY_PATH", "").split(":") if f)
    for file in sorted(pathlib.Path("/etc/ld.so.conf.d").glob("*.conf")):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        yield from (pathlib.Path(line.strip()) for line in lines if line.startswith("/"))
    yield from map(pathlib.Path, _SYSTEM_FOLDERS)


def disable_telemetry() -> None:
    """ONNX Runtime's wheels upload usage data unless this is set before their library starts. A user's choice stands."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
