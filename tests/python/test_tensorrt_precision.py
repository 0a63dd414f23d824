"""The precision cast of `ddpm-rt build`: what computes in which type, and that ONNX Runtime finds the same network."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT

onnx = pytest.importorskip("onnx", reason="the export and tensorrt extras have it")
from onnx import TensorProto, helper, numpy_helper

import ddpm_rt
from ddpm_rt import _core
from ddpm_rt.build.precision import FULL, count_types, to_half

DIGITS = ROOT / "ddpm_rt" / "models" / "digits.plan"
HALF = {"fp16": "float16", "bf16": "bfloat16"}


@pytest.fixture(scope="module")
def trunk() -> onnx.ModelProto:
    return onnx.load_model_from_string(_core.Plan(str(DIGITS)).read("unet.onnx"))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_narrow_and_sums_are_not(trunk, precision):
    made = to_half(trunk, precision, "x", ["eps"])
    onnx.checker.check_model(made, full_check=True)
    counts, before = count_types(made), count_types(trunk)
    assert set(counts["Conv"]) == {HALF[precision]} and sum(counts["Conv"].values()) == sum(before["Conv"].values())
    seen = [op for op in counts if op in FULL]
    assert seen and all(set(counts[op]) == {"float"} for op in seen), {op: counts[op] for op in seen}
    types = {v.name: v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output)}
    half = getattr(TensorProto, HALF[precision].upper())
    assert types == {"x": half, "rows": TensorProto.FLOAT, "eps": half}


def test_the_network_is_the_same_within_the_type_s_digits(trunk):
    onnxruntime = pytest.importorskip("onnxruntime")

    def run(model: onnx.ModelProto, dtype: type) -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(["eps"], {"x": x.astype(dtype), "rows": rows})[0].astype(np.float32)

    draw = np.random.default_rng(0)
    x, rows = draw.standard_normal((3, 1, 28, 28), np.float32), draw.standard_normal((3, 1040), np.float32)
    wide, narrow = run(trunk, np.float32), run(to_half(trunk, "fp16", "x", ["eps"]), np.float16)
    error = np.abs(wide - narrow).max() / np.abs(wide).max()
    assert 0 < error < 0.01, error


def small(*nodes: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 4]) for n in ("x", "y")]
    held = [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", ports[:1], ports[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def test_an_output_that_is_computed_wide_is_cast_at_the_end():
    made = to_half(small(helper.make_node("Softmax", ["x"], ["y"])), "fp16", "x", ["y"])
    assert [n.op_type for n in made.graph.node] == ["Cast", "Softmax", "Cast"]
    assert count_types(made)["Softmax"] == {"float": 1}


def test_what_does_not_depend_on_x_stays_wide():
    nodes = [
        helper.make_node("Mul", ["c", "c"], ["square"]),
        helper.make_node("Add", ["x", "square"], ["y"]),
    ]
    made = to_half(small(*nodes, weights={"c": np.full((4,), 3, np.float32)}), "fp16", "x", ["y"])
    assert count_types(made)["Mul"] == {"float": 1} and count_types(made)["Add"] == {"float16": 1}


def test_a_cast_of_a_stored_weight_is_folded():
    nodes = [
        helper.make_node("Cast", ["w16"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    made = to_half(small(*nodes, weights={"w16": np.eye(4, dtype=np.float16)}), "fp16", "x", ["y"])
    assert [n.op_type for n in made.graph.node] == ["MatMul"]


def test_weights_beyond_float16_are_refused_and_bf16_takes_them():
    model = small(helper.make_node("MatMul", ["x", "w"], ["y"]), weights={"w": np.full((4, 4), 1e5, np.float32)})
    with pytest.raises(ddpm_rt.PlanError, match=r"w: expected weights within float16's range.*take bf16"):
        to_half(model, "fp16", "x", ["y"])
    assert count_types(to_half(model, "bf16", "x", ["y"]))["MatMul"] == {"bfloat16": 1}


def test_an_unknown_precision_is_named():
    with pytest.raises(ddpm_rt.OptionError, match="fp16 or bf16"):
        to_half(small(helper.make_node("Relu", ["x"], ["y"])), "int8", "x", ["y"])
