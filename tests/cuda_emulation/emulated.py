"""The tests' device for Python: builds libddpm_rt_cuda_emulated once for these sources, and says what stands in for a GPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
]
SOURCES = ("device_emulated.cpp", "step_cuda_emulated.cpp")


@functools.cache
def library() -> str:
    """Path of the emulated device's library, compiled where it is new. Skips the test where there is no C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        import pytest

        pytest.skip("needs a C++ compiler for the emulated device")
    folders = (HERE, ROOT / "kernels", ROOT / "csrc")
    digest = hashlib.sha256(" ".join([compiler, *FLAGS]).encode())
    for path in sorted(p for f in folders for p in f.iterdir() if p.suffix in (".h", ".cpp", ".cu", ".cuh")):
        digest.update(path.read_bytes())
    made = ROOT / "build" / "emulated" / digest.hexdigest()[:16] / "libddpm_rt_cuda_emulated.so"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        unfinished = made.with_suffix(f".{os.getpid()}")
        command = [
            compiler,
            *FLAGS,
            *(f"-I{f}" for f in folders),
            *(str(HERE / s) for s in SOURCES),
            "-o",
            str(unfinished),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=280)
        unfinished.replace(made)
    return str(made)


def control(name: str, value: int | None = None) -> int:
    """A named number of the emulated device (emulated_control.h), after it was set where a value is given."""
    handle = ctypes.CDLL(library())
    if value is not None:
        handle.ddpm_rt_emulated_set(name.encode(), ctypes.c_int64(value))
    handle.ddpm_rt_emulated_get.restype = ctypes.c_int64
    return handle.ddpm_rt_emulated_get(name.encode())


@functools.cache
def has_gpu() -> bool:
    """A GPU, and the GPU part of ddpm_rt beside the package."""
    import ddpm_rt
    from ddpm_rt import _core

    try:
        _core.device_info("cuda", "")
    except ddpm_rt.DeviceError:
        return False
    return True


def device() -> dict[str, str]:
    """What an Engine is given to run on the GPU; on the emulated device where there is none."""
    return {"device": "cuda"} if has_gpu() else {"device": "cuda", "cuda_library": library()}
