"""One ONNX network to one TensorRT engine."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import BackendError, OptionError, PlanError
from .bindings import TensorRt

Profile = tuple[int, int, int]
MOST_ROWS = 1 << 20
_MOST_LOGGED = 2000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """profiles: (least, best, most) rows each. capabilities: "8.6", or "current" alone; none: as the library chooses.

    detailed: the log then holds every layer with its types ("Layers:").
    """

    profiles: tuple[Profile, ...]
    capabilities: tuple[str, ...] = ()
    detailed: bool = False


def profile_of(value: Any) -> Profile:
    """ "1,16,128", or a sequence of three. OptionError where it is not 1 <= least <= best <= most."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        least, best, most = (int(p) for p in parts)
        if 1 <= least <= best <= most <= MOST_ROWS:
            return least, best, most
    except (TypeError, ValueError):
        pass
    raise OptionError(
        f"batch_profile: expected LEAST,BEST,MOST with 1 <= LEAST <= BEST <= MOST <= {MOST_ROWS}, got {value!r}"
    )


def capabilities_of(values: Sequence[str], rt: TensorRt) -> tuple[str, ...]:
    """Checked against what the library can build for."""
    known = known_capabilities(rt)
    for value in values:
        if value not in known:
            raise OptionError(f"cc: expected {', '.join(known)} with {rt.kind} {rt.version}, got {value!r}")
    if "current" in values and len(values) > 1:
        raise OptionError(f"cc: expected current alone, got {', '.join(values)}")
    return tuple(dict.fromkeys(values))


def known_capabilities(rt: TensorRt) -> list[str]:
    """TensorRT proper builds on and for the GPU at hand; RTX also for others, none being at hand."""
    if rt.kind == "tensorrt":
        return ["current"]
    names = [n.removeprefix("SM") for n in rt.module.ComputeCapability.__members__ if n.startswith("SM")]
    return ["current", *(f"{n[:-1]}.{n[-1]}" for n in names)]


class Log:
    """What the library says: every line to `sink(severity, text)`, and its errors for our own."""

    def __init__(self, rt: TensorRt, sink: Callable[[str, str], None] | None) -> None:
        log = self
        self.errors: list[str] = []

        class Logger(rt.module.ILogger):
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, text: str) -> None:
                log._take(severity.name.lower(), text, sink)

        self.logger = Logger()

    def _take(self, severity: str, text: str, sink: Callable[[str, str], None] | None) -> None:
        if severity in ("error", "internal_error"):
            self.errors.append(text.strip())
        if sink is not None:
            sink(severity, text)

    def text(self) -> str:
        return "; ".join(dict.fromkeys(self.errors))[:_MOST_LOGGED] or "no reason given"


def build_engine(
    rt: TensorRt,
    model: bytes,
    recipe: Recipe,
    *,
    what: str = "network",
    on_step: Callable[[str, int, int], None] | None = None,
    on_log: Callable[[str, str], None] | None = None,
) -> bytes:
    """The serialized engine.

    on_step(phase, step, steps): while it works; what it raises ends the build, as Ctrl-C does. on_log(severity, text).

    Raises:
        PlanError: a graph that TensorRT cannot parse. BackendError: it can build no engine of it, with its words.
    """
    trt, log = rt.module, Log(rt, on_log)
    builder = trt.Builder(log.logger)
    flags = trt.NetworkDefinitionCreationFlag.__members__
    network = builder.create_network(1 << int(flags["STRONGLY_TYPED"]) if "STRONGLY_TYPED" in flags else 0)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(model):
        found = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or log.text()
        raise PlanError(f"{what}: expected a graph that {rt.kind} {rt.version} parses, got: {found[:_MOST_LOGGED]}")
    config = builder.create_builder_config()
    _configure(rt, config, recipe)
    for profile in recipe.profiles:
        made = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            port = network.get_input(i)
            made.set_shape(port.name, *((rows, *port.shape[1:]) for rows in profile))
        config.add_optimization_profile(made)
    monitor = _monitor(trt, on_step)
    config.progress_monitor = monitor
    built = _built(builder, network, config, monitor)
    if built is None:
        raise BackendError(f"{what}: expected {rt.kind} {rt.version} to build an engine of it, got: {log.text()}")
    return bytes(built)


def _configure(rt: TensorRt, config: Any, recipe: Recipe) -> None:
    trt = rt.module
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means 24 bits
    if "REQUIRE_USER_ALLOCATION" in trt.BuilderFlag.__members__:  # memory allocated inside a call cannot be captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if recipe.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if recipe.capabilities and rt.kind == "tensorrt_rtx":
        config.num_compute_capabilities = len(recipe.capabilities)
        for i, value in enumerate(recipe.capabilities):
            name = "CURRENT" if value == "current" else "SM" + value.replace(".", "")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)


def _built(builder: Any, network: Any, config: Any, monitor: Any) -> Any:
    """On a thread of its own, so that Ctrl-C comes to this one: raised in a callback, the library would print and drop it."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        work = pool.submit(builder.build_serialized_network, network, config)
        try:
            built = work.result()
        except BaseException as e:
            monitor.interruption = e
            raise
    if monitor.interruption is not None:
        raise monitor.interruption
    return built


def _monitor(trt: Any, on_step: Callable[[str, int, int], None] | None) -> Any:
    class Monitor(trt.IProgressMonitor):
        """An exception must not pass through the library, which calls from C++: it is kept, and the build told to stop."""

        def __init__(self) -> None:
            super().__init__()
            self.interruption: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps
            self._say(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._say(phase, step + 1)
            return self.interruption is None

        def phase_finish(self, phase: str) -> None:
            self._say(phase, self._steps.pop(phase, 0))

        def _say(self, phase: str, step: int) -> None:
            if on_step is None or self.interruption is not None:
                return
            try:
                on_step(phase, step, self._steps.get(phase, step))
            except BaseException as e:  # noqa: BLE001
                self.interruption = e

    return Monitor()
