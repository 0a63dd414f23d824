"""PyTorch as what runs the network on a GPU: tensors over the engine's own memory, on its stream, in its CUDA graph.

The only module of the front door that imports torch; `Engine.from_torch` and device="cuda" import it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .errors import OptionError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # ddpm_rt_device_type
_BYTES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.int64: 8}
_TYPESTR = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2", torch.int64: "<i8"}
_WARM_UP = 3  # calls before a capture: allocations, algorithm choices and compilations are over by then


def tensor_at(address: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor over memory that is not torch's; on the CPU, host memory (the tests' emulated device)."""
    if device.type == "cpu":
        count = int(np.prod(shape, dtype=object))
        memory = (ctypes.c_char * (count * _BYTES[dtype])).from_address(address)
        return torch.frombuffer(memory, dtype=dtype).reshape(tuple(shape))
    interface = {"shape": tuple(shape), "typestr": _TYPESTR[dtype], "data": (address, False), "version": 2}
    holder = type("DeviceMemory", (), {"__cuda_array_interface__": interface})()
    tensor = torch.as_tensor(holder, device=device)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


class TorchNetwork:
    """One way to run a network, for the engine's thread (csrc/bindings_device.h says what it reads and calls).

    Args:
        call: call(x, t, labels, rows) -> eps, all tensors; x [count, *shape] of `dtype`, t float32 [count], labels int64
            [count] or None, rows float32 [count, rows_width] or None.
        embed: embed(t, labels) -> rows, where the network reads rows.
    """

    name = "torch"
    version = torch.__version__.partition("+")[0]
    max_count = 256

    def __init__(
        self,
        call: Callable[..., torch.Tensor],
        shape: Sequence[int],
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        precision: str = "fp32",
        channels_last: bool = False,
        has_labels: bool = False,
        rows_width: int = 0,
        embed: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.precision = precision
        self.x_type = self.out_type = _CODES[dtype]
        self.channels_last = channels_last and len(shape) == 3
        self._row_stride = -(-rows_width // 4) * 4  # the engine copies 16 bytes at a time
        self.rows_bytes = 4 * self._row_stride
        self.has_capture = device.type == "cuda" and hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph")
        self._call, self._embed = call, embed
        self._shape, self._device, self._dtype = tuple(shape), device, dtype
        self._has_labels, self._rows_width = has_labels, rows_width
        self._graphs: dict[tuple[int, int], Any] = {}  # by address and count: they own the memory between their kernels
        self._pool: Any = None

    def enqueue(self, x: int, t: int, label: int, rows: int, out: int, count: int, stream: int) -> None:
        with self._on(stream):
            self._run(x, t, label, rows, out, count)

    def capture(self, x: int, t: int, label: int, rows: int, out: int, count: int) -> int:
        """A raw graph of the same work. Graphs share a pool: they run one after the other, and nothing but `out` outlives
        any of them."""
        if (x, count) not in self._graphs:
            side = torch.cuda.Stream(self._device)
            with torch.cuda.device(self._device), torch.cuda.stream(side), torch.no_grad():
                for _ in range(_WARM_UP):
                    self._run(x, t, label, rows, out, count)
            side.synchronize()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph(keep_graph=True)
            with (
                torch.cuda.device(self._device),
                torch.no_grad(),
                torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"),
            ):
                self._run(x, t, label, rows, out, count)
            self._graphs[x, count] = graph
        return self._graphs[x, count].raw_cuda_graph()

    def embed(self, t: np.ndarray, label: np.ndarray, rows: int, stream: int) -> None:
        with self._on(stream):
            times = torch.from_numpy(t).to(self._device)
            labels = torch.from_numpy(label).to(self._device) if self._has_labels else None
            target = tensor_at(rows, (len(t), self._row_stride), torch.float32, self._device)
            target[:, : self._rows_width].copy_(self._embed(times, labels))

    def _run(self, x: int, t: int, label: int, rows: int, out: int, count: int) -> None:
        at = self._device
        labels = tensor_at(label, (count,), torch.int64, at) if self._has_labels else None
        embedding = None
        if self._rows_width:
            embedding = tensor_at(rows, (count, self._row_stride), torch.float32, at)[:, : self._rows_width]
        eps = self._call(self._list(x, count), tensor_at(t, (count,), torch.float32, at), labels, embedding)
        if not isinstance(eps, torch.Tensor) or tuple(eps.shape) != (count, *self._shape):
            got = list(eps.shape) if isinstance(eps, torch.Tensor) else type(eps).__name__
            raise ValueError(f"denoiser: expected eps of shape {[count, *self._shape]}, got {got}")
        self._list(out, count).copy_(eps)

    def _list(self, address: int, count: int) -> torch.Tensor:
        """[count, *shape], in channels-last memory where the lists are so."""
        if not self.channels_last:
            return tensor_at(address, (count, *self._shape), self._dtype, self._device)
        channels, height, width = self._shape
        return tensor_at(address, (count, height, width, channels), self._dtype, self._device).permute(0, 3, 1, 2)

    @contextlib.contextmanager
    def _on(self, stream: int):
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._device.type == "cuda":
                stack.enter_context(torch.cuda.device(self._device))
                stack.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self._device)))
            yield


def output(n: int, shape: Sequence[int], device: str) -> tuple[torch.Tensor, tuple[int, int, bool, torch.Tensor]]:
    """float32 [n, *shape] on the engine's device ("cuda:N", or emulated), free to be written."""
    at = torch.device(device) if device.startswith("cuda") else torch.device("cpu")
    out = torch.empty((n, *shape), device=at)
    if at.type == "cuda":
        torch.cuda.current_stream(at).synchronize()  # whoever had this memory before
    return out, (out.data_ptr(), out.numel() * out.element_size(), False, out)


def device_of(module: Any) -> torch.device | None:
    """Where a module's parameters and buffers are; None for a function.

    Raises:
        OptionError: on several devices, or on one that is neither the CPU nor a GPU.
    """
    if not isinstance(module, torch.nn.Module):
        return None
    found = {p.device for p in [*module.parameters(), *module.buffers()]}
    if len(found) > 1 or any(d.type not in ("cpu", "cuda") for d in found):
        raise OptionError(f"module: expected its parameters on one CPU or GPU, got {sorted(map(str, found))}")
    return next(iter(found), None)


def dtype_of(module: Any) -> torch.dtype:
    """Of a module's floating-point parameters, where the engine has it; else float32."""
    if isinstance(module, torch.nn.Module):
        for p in module.parameters():
            if p.dtype.is_floating_point:
                return p.dtype if p.dtype in _CODES else torch.float32
    return torch.float32


def of_module(
    module: Callable[..., Any], shape: Sequence[int], device: torch.device, channels_last: bool, has_labels: bool
) -> TorchNetwork:
    """The network of `Engine.from_torch` on a device."""
    dtype = dtype_of(module)
    precision = next(name for name, known in DTYPES.items() if known == dtype)
    return TorchNetwork(
        lambda x, t, labels, rows: module(x, t, labels),
        shape,
        device,
        dtype=dtype,
        precision=precision,
        channels_last=channels_last,
        has_labels=has_labels,
    )


def on_host(module: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """module(x, t, labels) over tensors on the CPU, as the function over arrays that `Engine.from_callable` takes."""
    dtype = dtype_of(module)

    def call(x: np.ndarray, t: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        with torch.no_grad():
            eps = module(
                torch.from_numpy(x).to(dtype),
                torch.from_numpy(t),
                None if labels is None else torch.from_numpy(labels),
            )
        if not isinstance(eps, torch.Tensor):
            raise TypeError(f"denoiser: expected a tensor, got {type(eps).__name__}")
        return eps.float().numpy()

    return call
