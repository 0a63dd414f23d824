"""Checks before a plan is written: the graph computes what the module does, each image by itself."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Mapping

import numpy as np

from ..backends import disable_telemetry
from ..errors import PlanError
from . import conditions
from .description import SELF_TESTS, TOLERANCE, Description

log = logging.getLogger("ddpm_rt.export")

Arrays = dict[str, np.ndarray]
BATCH_TOLERANCE = 1e-4  # relative; other batch sizes may sum in another order


def compiled(graph: bytes, output: str) -> Callable[[Arrays], np.ndarray]:
    """An output of an ONNX graph as a function of its inputs by name, on the CPU in float32."""
    if importlib.util.find_spec("onnxruntime") is not None:
        return _in_onnxruntime(graph, output)
    return _in_openvino(graph, output)


def _in_onnxruntime(graph: bytes, output: str) -> Callable[[Arrays], np.ndarray]:
    disable_telemetry()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # its own classes, one per status code
        raise PlanError(f"model: expected a graph that ONNX Runtime runs, got {_first_line(e)}") from e

    def run(inputs: Arrays) -> np.ndarray:
        try:
            return session.run([output], inputs)[0]
        except Exception as e:
            raise PlanError(
                f"model: expected a graph that runs for a batch of {_rows(inputs)}: {_first_line(e)}"
            ) from e

    return run


def _in_openvino(graph: bytes, output: str) -> Callable[[Arrays], np.ndarray]:
    import openvino

    try:
        core = openvino.Core()
        model = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as e:
        raise PlanError(f"model: expected a graph that OpenVINO runs, got {_first_line(e)}") from e

    def run(inputs: Arrays) -> np.ndarray:
        try:
            return np.array(model(inputs)[output])
        except RuntimeError as e:
            raise PlanError(
                f"model: expected a graph that runs for a batch of {_rows(inputs)}: {_first_line(e)}"
            ) from e

    return run


def _rows(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:300]


@dataclasses.dataclass(frozen=True)
class Network:
    """eps(x, t, label) of graphs by section name, wired as the manifest's networks say."""

    graphs: Mapping[str, bytes]
    networks: Mapping[str, Mapping]

    def runner(self) -> Callable[[Arrays], np.ndarray]:
        """Takes role -> array: x [B, *shape] float32, t [B] float32, and label [B] int64 where there are classes."""
        parts = {
            name: compiled(self.graphs[n["section"]], next(iter(n["outputs"].values())))
            for name, n in self.networks.items()
        }

        def run(given: Arrays) -> np.ndarray:
            values = dict(given)
            for name, role in (("temb", "rows"), ("unet", "eps")):
                if name in parts:
                    wired = {tensor: values[r] for r, tensor in self.networks[name]["inputs"].items()}
                    values[role] = parts[name](wired)
            return values["eps"]

        return run


def cases(about: Description, count: int = SELF_TESTS) -> Arrays:
    """Inputs of `count` evaluations: unit noise, timesteps spread over the schedule, the null label last."""
    inputs = {
        "x": np.random.default_rng(0).standard_normal((count, *about.shape)).astype(np.float32),
        "t": about.times(count),
    }
    if about.num_classes:
        inputs["label"] = np.linspace(0, about.num_classes, count).round().astype(np.int64)
    return inputs | conditions.examples(about.conditions, count)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over largest expected value; infinite where anything is not finite."""
    if got.shape != expected.shape or not np.isfinite(got).all() or not np.isfinite(expected).all():
        return float("inf")
    return float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def check_output(out: np.ndarray, about: Description) -> None:
    expected = (SELF_TESTS, *about.output_shape)
    if out.shape != expected:
        like = "like its input" if about.output_shape == about.shape else "more channels than its input"
        raise PlanError(f"model: expected an output of shape {list(expected)}, {like}, got {list(out.shape)}")
    if not np.isfinite(out).all():
        raise PlanError(f"model: expected finite outputs for unit noise, got {int((~np.isfinite(out)).sum())} others")


def check_parity(got: np.ndarray, expected: np.ndarray, weights: str) -> float:
    """The error, or PlanError where it is beyond what these weights explain."""
    error = relative_error(got, expected)
    if not error <= TOLERANCE[weights]:
        raise PlanError(
            f"parity: expected the exported graph within {TOLERANCE[weights]:g} of the original, got {error:.3g} "
            f"(largest difference over largest value, weights {weights})"
        )
    log.info("parity with the original: %.2g of at most %g", error, TOLERANCE[weights])
    return error


def check_batch(run: Callable[[Arrays], np.ndarray], inputs: Arrays) -> None:
    """PlanError where an image's output depends on its place in the batch, or on the others in it.

    A batch is compared with itself turned round, with rows alone, and padded with zeros and with large values.
    """
    count = _rows(inputs)
    base = run(inputs)
    order = np.roll(np.arange(count)[::-1], 1)
    found = [("in another order", run({k: v[order] for k, v in inputs.items()}), base[order])]
    found.append(("alone", run({k: v[1:2] for k, v in inputs.items()}), base[1:2]))
    for what, factor in (("beside zeros", 0), ("beside large values", 1000)):
        other = {k: (v * factor if k == "x" else v) for k, v in inputs.items()}
        padded = run({k: np.concatenate([v, other[k][:3]]) for k, v in inputs.items()})
        found.append((what, padded[:count], base))
    for what, got, expected in found:
        error = relative_error(got, expected)
        if not error <= BATCH_TOLERANCE:
            raise PlanError(
                f"model: expected each image's output to be its own, but the model couples the batch axis: {what} it "
                f"changes by {error:.3g}; a normalisation over the batch (BatchNorm in training mode) does that"
            )
    log.info("no image depends on its neighbours in the batch")


def self_test(inputs: Arrays, expected: np.ndarray) -> bytes:
    """float32, count x [x | t | label | conditions, masks behind them | expected], label 0 without classes."""
    count = len(expected)
    label = inputs.get("label", np.zeros(count, np.int64))
    further = [v.reshape(count, -1) for k, v in inputs.items() if k not in ("x", "t", "label")]
    columns = [inputs["x"].reshape(count, -1), inputs["t"][:, None], label[:, None], *further, expected.reshape(count, -1)]
    return np.concatenate(columns, axis=1).astype("<f4").tobytes()
