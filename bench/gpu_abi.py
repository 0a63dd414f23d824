"""csrc/device_api.h and kernels/step_gpu.h for ctypes. The library's own sum of the structs' sizes refuses what does not fit."""

from __future__ import annotations

import ctypes as c
from typing import Any

P, U32, U64, I32, I64, F32 = c.c_void_p, c.c_uint32, c.c_uint64, c.c_int32, c.c_int64, c.c_float
NO_PLACE = -1
TYPES = {"fp32": 0, "fp16": 1, "bf16": 2}
NEEDS = {"pair": 1, "noise": 2, "registers": 4, "rare": 8, "rescale": 16, "norm": 32, "threshold": 64, "vlb": 128}
ALL_NEEDS = 255
ACTIVE, PREVIEW = 1, 2
FINISH = {"float": 0, "rounded": 1, "truncated": 2}


class Tensor(c.Structure):
    _fields_ = [("data", P), ("type", U32), ("layout", U32), ("channels", U32), ("row", U64)]


class Network(c.Structure):
    _fields_ = [
        ("input", Tensor), ("out", Tensor), ("variance", Tensor), ("grad", Tensor), ("t", P), ("t2", P), ("label", P), ("rows", P),
        ("rows_bytes", U64),
    ]  # fmt: skip


class Slot(c.Structure):
    _fields_ = [
        ("table", P), ("row", U32), ("row_count", U32), ("ring", U32), ("flags", U32), ("seed", U64), ("scale", F32), ("scale2", F32),
        ("places", I32 * 3), ("next", I32 * 3), ("label", I64 * 3), ("rows", P * 3), ("known", P), ("mask", P), ("x0_true", P),
        ("kl", P),
    ]  # fmt: skip


class Lane(c.Structure):
    _fields_ = [
        ("slots", P), ("slot_count", U32), ("channels", U32), ("pixels", U32), ("stride", U64), ("x", P), ("history", P * 3),
        ("anchor", P), ("preview", P), ("status", P), ("network", Network * 2), ("scratch", P),
    ]  # fmt: skip


class Install(c.Structure):
    _fields_ = [("slot", U32), ("apply", U32), ("start", P), ("sigma", F32), ("value", Slot)]


class Padding(c.Structure):
    _fields_ = [("network", U32), ("place", I32)]


class Copy(c.Structure):
    _fields_ = [("source", P), ("to", P), ("bytes", U64)]


class Packet(c.Structure):
    _fields_ = [("installs", P), ("padding", P), ("copies", P), ("install_count", U32), ("padding_count", U32), ("copy_count", U32)]


class Finish(c.Structure):
    _fields_ = [("slot", U32), ("format", U32), ("lo", F32), ("hi", F32), ("out", P), ("status", P)]


class Mixture(c.Structure):
    _fields_ = [
        ("means", P), ("stds", P), ("weights", P), ("alpha_bar", P), ("components", U32), ("T", U32), ("prediction", U32),
        ("num_classes", U32), ("time_scale", c.c_double),
    ]  # fmt: skip


ROW_BYTES = 256


def layout() -> int:
    mixed = 0
    for size in (ROW_BYTES, *(c.sizeof(s) for s in (Slot, Lane, Network, Install, Padding, Copy, Packet, Finish, Mixture))):
        mixed = (mixed * 1000003 + size) % 2**64
    return mixed


_L = c.POINTER(Lane)
_FUNCTIONS = [
    ("error_text", c.c_char_p, [c.c_int]), ("versions", c.c_int, [P, P]), ("device_count", c.c_int, [P]),
    ("facts", c.c_int, [c.c_int, P]), ("current_device", c.c_int, [P]), ("set_device", c.c_int, [c.c_int]),
    ("free_memory", c.c_int, [P, P]), ("allocate", c.c_int, [P, c.c_size_t]), ("release", c.c_int, [P]),
    ("allocate_pinned", c.c_int, [P, c.c_size_t]), ("release_pinned", c.c_int, [P]),
    ("copy", c.c_int, [P, P, c.c_size_t, I32, P]), ("fill", c.c_int, [P, c.c_int, c.c_size_t, P]),
    ("new_stream", c.c_int, [P]), ("destroy_stream", c.c_int, [P]), ("synchronize_stream", c.c_int, [P]),
    ("stream_wait", c.c_int, [P, P]), ("create_event", c.c_int, [P, c.c_int]), ("destroy_event", c.c_int, [P]),
    ("record_event", c.c_int, [P, P]), ("query_event", c.c_int, [P]), ("synchronize_event", c.c_int, [P]),
    ("elapsed", c.c_int, [P, P, P]), ("begin_capture", c.c_int, [P]), ("end_capture", c.c_int, [P, P]),
    ("add_child", c.c_int, [P, P]), ("instantiate", c.c_int, [P, P]), ("launch_graph", c.c_int, [P, P]),
    ("destroy_graph", c.c_int, [P]), ("destroy_exec", c.c_int, [P]), ("scratch_bytes", U64, [U32, U64]),
    ("step", c.c_int, [_L, U32, P]), ("advance", c.c_int, [_L, P]), ("apply", c.c_int, [_L, c.POINTER(Packet), P]),
    ("finish", c.c_int, [_L, P, U32, P]), ("normals", c.c_int, [U64, U32, U32, U64, U64, P, P]),
    ("cfg_combine", c.c_int, [P, P, P, F32, U32, U32, U64, P, P, P]),
    ("gaussian_mixture", c.c_int, [c.POINTER(Mixture), c.POINTER(Network), U64, I32, U32, P]),
]  # fmt: skip


class _Table(c.Structure):
    _fields_ = [("version", U32), ("bytes", U32), ("row_version", U32), ("rng_version", U32), ("layout", U64), ("name", c.c_char_p)] + [
        (name, c.CFUNCTYPE(result, *arguments)) for name, result, arguments in _FUNCTIONS
    ]


class Api:
    """The table of a library, its functions as attributes."""

    def __init__(self, path: str) -> None:
        self._library = c.CDLL(path)
        entry = self._library.ddpm_rt_device_api
        entry.restype = c.POINTER(_Table)
        self._table = entry().contents
        if (self._table.bytes, self._table.layout) != (c.sizeof(_Table), layout()):
            raise SystemExit(f"{path}: expected the structs of bench/gpu_abi.py, got others: build it from these sources")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def check(self, error: int) -> None:
        if error:
            raise RuntimeError(f"error {error}: {self._table.error_text(error).decode()}")

    def handle(self, make: Any, *arguments: Any) -> int:
        made = P()
        self.check(make(c.byref(made), *arguments))
        return made.value

    def create_stream(self) -> int:
        return self.handle(self._table.new_stream)

    def event(self) -> int:
        return self.handle(self._table.create_event, 1)

    def captured(self, stream: int, work: Any) -> int:
        """An executable graph of what `work` puts on the stream."""
        self.check(self._table.begin_capture(stream))
        work()
        graph = P()
        self.check(self._table.end_capture(stream, c.byref(graph)))
        made = self.handle(self._table.instantiate, graph)
        self.check(self._table.destroy_graph(graph))
        return made
