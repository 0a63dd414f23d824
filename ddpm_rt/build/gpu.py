"""Which GPU engines are built for, asked of the driver itself: building needs no other part of CUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from ..errors import DeviceError

_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


def capabilities_built(kind: str, asked: Sequence[str]) -> tuple[str, ...]:
    """What an engine's card says; empty: as the library chooses. DeviceError where a GPU is needed and none is here."""
    if kind == "tensorrt" or "current" in asked:
        return (current_capability(kind),)
    return tuple(asked)


def current_capability(kind: str) -> str:
    """ "9.0", of the first GPU."""
    wanted = f"{kind} builds for the GPU at hand" if kind == "tensorrt" else "cc current is the GPU at hand"
    hint = "" if kind == "tensorrt" else "; name capabilities, --cc 8.6,8.9, or none, to build without one"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise DeviceError(f"cc: expected an NVIDIA driver, as {wanted}, got: {e}{hint}") from e
    device, numbers = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    codes = [driver.cuInit(0), driver.cuDeviceGet(ctypes.byref(device), 0)]
    codes += [
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True)
    ]
    if any(codes):
        raise DeviceError(f"cc: expected a GPU, as {wanted}, got error {next(filter(None, codes))} of its driver{hint}")
    return f"{numbers[0].value}.{numbers[1].value}"
