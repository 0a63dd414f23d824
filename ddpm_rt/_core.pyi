"""The C++ engine. Use the names of `ddpm_rt`; this module's may change."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

def options() -> list[dict[str, str]]: ...
def device_info(device: str, library: str = "") -> str:
    """JSON of "cuda" or "cuda:N"."""
def examine_tensorrt(library: str, engine: bytes | None = None) -> str:
    """JSON of a TensorRT library: library, version. With an engine: raises what loading it here raises."""

class Plan:
    def __init__(self, path: str) -> None: ...
    @property
    def manifest(self) -> str: ...
    @property
    def sections(self) -> list[dict[str, Any]]:
        """name, offset, bytes, sha256 of each."""
    def read(self, name: str) -> bytes: ...
    def verify(self) -> None: ...

def write_plan(path: str, manifest: str, sections: Mapping[str, Any]) -> None:
    """sections: name -> bytes or any contiguous buffer. Atomic; the manifest is parsed first."""

def noise(seed: int, index: int, stream: int, out: NDArray[np.float32]) -> None: ...
def alpha_bar(schedule: str, T: int) -> NDArray[np.float64]: ...
def rows(
    alpha_bar: NDArray[np.float64],
    model: str,
    options: dict[str, Any],
    exact: bool,
) -> tuple[bytes, float]:
    """The table's bytes and the sampler's initial sigma; exact: rows of 42 float64."""

def check_rows(rows: Any, init_sigma: float) -> None: ...
def samplers() -> str: ...

def step(
    x: NDArray[np.float32],
    eps: NDArray[np.float32],
    eps_uncond: NDArray[np.float32] | None,
    rows: Any,
    index: int,
    scale: float,
    seeds: NDArray[np.uint64],
    history: NDArray[np.float32] | None,
    ring: int,
    anchor: NDArray[np.float32] | None,
    input: NDArray[np.float32] | None,
    x0: NDArray[np.float32] | None,
) -> None: ...
def cfg_combine(
    cond: NDArray[np.float32],
    uncond: NDArray[np.float32],
    scale: NDArray[np.float32],
    rescale: float,
    out: NDArray[np.float32],
) -> None: ...

class Request:
    def wait(self, seconds: float) -> bool: ...
    def cancel(self) -> None: ...
    def progress(self) -> tuple[int, int]: ...
    def result(self) -> dict[str, Any]: ...

class Engine:
    @staticmethod
    def open(path: str, options: Mapping[str, Any], networks: list[Any] = ...) -> Engine:
        """networks: objects as csrc/bindings_device.h describes them."""
    @staticmethod
    def from_callable(
        manifest: str,
        alpha_bar: NDArray[np.float64],
        fn: Callable[..., Any] | None,
        shape: Sequence[int],
        out_shape: Sequence[int],
        options: Mapping[str, Any],
        networks: list[Any] = ...,
    ) -> Engine: ...
    def close(self) -> None: ...
    def info(self) -> str: ...
    def model(self) -> str: ...
    def submit(
        self,
        out: NDArray[Any] | tuple[int, int, bool, Any],
        shape: Sequence[int],
        options: dict[str, Any],
        callback: Callable[..., Any] | None,
        guide: Engine | None,
    ) -> Request: ...
    def denoiser_error(self, message: str) -> BaseException | None: ...
    def forget_denoiser_error(self) -> None: ...

class DeviceTensor:
    """Memory of a DLPack producer on a GPU, held while this lives."""

    def __init__(self, capsule: object) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def strides(self) -> list[int]: ...
    @property
    def device(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> tuple[int, int]: ...

class DeviceKernels:
    def __init__(self, device: str, library: str) -> None: ...
    def step(self, *operands: Any) -> None:
        """In the order of csrc/bindings_device_kernels.cpp."""
    def cfg_combine(
        self,
        cond: DeviceTensor,
        uncond: DeviceTensor,
        scale: NDArray[np.float32],
        rescale: float,
        type: int,
        elements: int,
        out: DeviceTensor,
        stream: int,
    ) -> None: ...
