"""What every part of the GPU report stands on: the build under test, the device's table of functions, clocks and tolerances.

On a GPU all work goes to one stream of ours, torch's too. On the emulated device (tests/cuda_emulation) memory is the host's and
sizes are tiny: everything runs, and no time means anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_HOLD_CYCLES = 1_000_000  # half a millisecond: a chain of operators is launched in less


def use_build(folder: Path) -> Path:
    """Makes `import ddpm_rt` take the extension of a CMake build folder. Before ddpm_rt is imported."""
    found = sorted(folder.glob("_core*.so"))
    if not found:
        raise SystemExit(f"--build: expected {folder}/_core*.so, got none: configure with -DDDPM_RT_PYTHON=ON")
    spec = importlib.util.spec_from_file_location("ddpm_rt._core", found[-1])
    module = importlib.util.module_from_spec(spec)
    sys.modules["ddpm_rt._core"] = module
    spec.loader.exec_module(module)
    return folder


@dataclasses.dataclass
class Context:
    """The device of this run. build: a CMake folder with the C++ programs, or None."""

    kind: str
    library: str
    build: Path | None
    quick: bool = False
    deadline: float = float("inf")  # of time.monotonic()

    def __post_init__(self) -> None:
        import torch

        from ddpm_rt import _core

        from .gpu_abi import Api

        self.torch = torch
        self.facts: dict[str, Any] = json.loads(_core.device_info("cuda", self.library))
        self.api = Api(self.facts["library"])
        self.at = torch.device("cpu" if self.is_emulated else "cuda:0")
        self.stream = self.api.create_stream()

    @property
    def is_emulated(self) -> bool:
        return self.kind == "emulated"

    def size(self, on_gpu: int, emulated: int) -> int:
        return emulated if self.is_emulated else on_gpu

    def is_late(self, seconds: float) -> bool:
        """Fewer than so many seconds are left of the budget."""
        return time.monotonic() + seconds > self.deadline

    @property
    def engine(self) -> dict[str, Any]:
        """What an Engine is given to run here."""
        return {"device": "cuda", "cuda_library": self.library or None}

    @contextlib.contextmanager
    def torch_stream(self) -> Iterator[None]:
        """torch's work goes to our stream; with torch.compile and graphs of torch's own too."""
        if self.is_emulated:
            yield
            return
        with self.torch.cuda.stream(self.torch.cuda.ExternalStream(self.stream, device=self.at)):
            yield

    def wait(self) -> None:
        self.api.check(self.api.synchronize_stream(self.stream))
        if not self.is_emulated:
            self.torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], times: int = 1, is_queued: bool = True) -> float:
        """Of one call among `times`, between two events of the device on our stream. is_queued: the device is held up until the
        host has put all of it on the stream, so that launches do not show."""
        start, end = self.api.event(), self.api.event()
        self.wait()
        with self.torch_stream():
            if is_queued and not self.is_emulated:
                self.torch.cuda._sleep(_HOLD_CYCLES)
            self.api.check(self.api.record_event(start, self.stream))
            for _ in range(times):
                work()
            self.api.check(self.api.record_event(end, self.stream))
        self.wait()
        elapsed = ctypes.c_double()
        self.api.check(self.api.elapsed(start, end, ctypes.byref(elapsed)))
        for event in (start, end):
            self.api.destroy_event(event)
        return elapsed.value / times

    def host_seconds(self, work: Callable[[], object], times: int = 5) -> float:
        """Median of the host's clock, the device idle before and after."""
        taken = []
        for _ in range(times):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def medians(self, sides: dict[str, Callable[[], object]], rounds: int = 15, times: int = 1) -> dict[str, list[float]]:
        """Seconds of every side in every round, sides in turn and in both orders; two rounds before are thrown away."""
        rounds = 2 if self.is_emulated else max(3, rounds // 3) if self.quick else rounds
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for k in range(rounds + 2):
            order = list(sides) if k % 2 == 0 else list(reversed(sides))
            for name in order:
                t = self.seconds(sides[name], times)
                if k >= 2:
                    taken[name].append(t)
        return taken

    def graph(self, work: Callable[[], object], warm_up: int = 3) -> Callable[[], object]:
        """torch's work as a CUDA graph's replay; itself on the emulated device."""
        torch = self.torch
        if self.is_emulated:
            return work
        side = torch.cuda.Stream()
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(warm_up):
                work()
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph, stream=side):
            work()
        return graph.replay


def spread(values: list[float], unit: float = 1.0, digits: int = 4) -> dict[str, float]:
    """Median, least and most."""
    scaled = [v * unit for v in values]
    return {"median": round(statistics.median(scaled), digits), "least": round(min(scaled), digits), "most": round(max(scaled), digits)}


def ratios(over: list[float], under: list[float]) -> dict[str, float]:
    """over / under, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


class Failed(AssertionError):
    """A check of the report that does not hold."""


def expect(holds: bool, what: str, **got: Any) -> None:
    if not holds:
        raise Failed(f"{what}: {got}")
