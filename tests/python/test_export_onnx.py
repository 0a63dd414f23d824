"""Plans of ONNX files with a card: roles, casts, GroupNormalization, and what is refused with which words."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ddpm_rt
from ddpm_rt import _core
from ddpm_rt.errors import PlanError
from ddpm_rt.export import export_onnx
from ddpm_rt.export.rewrite import lower_group_norm

SHAPE = [2, 4, 4]
CARD = {
    "inputs": {"x": "noisy", "t": "step"},
    "outputs": {"eps": "noise"},
    "sample": {"shape": SHAPE, "role": "image", "range": [-1, 1]},
    "schedule": {"name": "linear", "T": 100},
    "prediction": "eps",
    "defaults": {"steps": 5},
}


def value(name: str, kind: int, dims: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def make(path, nodes, inputs, outputs, weights=(), opset: int = 18) -> None:
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path)


def simple(path, *, t_type=TensorProto.FLOAT, batch="B", label=False, nodes=None, weights=(), opset=18) -> None:
    """noise = 0.5 noisy + step / 1000 (+ label)"""
    default = [
        helper.make_node("Cast", ["step"], ["time"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["time", "thousandth"], ["small"]),
        helper.make_node("Reshape", ["small", "column"], ["wide"]),
        helper.make_node("Mul", ["noisy", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "wide"], ["noise" if not label else "sum"]),
    ]
    inputs = [value("noisy", TensorProto.FLOAT, [batch, *SHAPE]), value("step", t_type, [batch])]
    if label:
        inputs.append(value("digit", TensorProto.INT64, [batch]))
        default += [
            helper.make_node("Cast", ["digit"], ["class"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["class", "column"], ["class_wide"]),
            helper.make_node("Add", ["sum", "class_wide"], ["noise"]),
        ]
    constants = [
        ("thousandth", np.array(0.001, np.float32)),
        ("half", np.array(0.5, np.float32)),
        ("column", np.array([-1, 1, 1, 1], np.int64)),
    ]
    outputs = [value("noise", TensorProto.FLOAT, [batch, *SHAPE])]
    make(path, nodes or default, inputs, outputs, [*constants, *weights] if nodes is None else weights, opset)


def stored_of(path) -> tuple[np.ndarray, ...]:
    """x, t, label, expected of the plan's self-test."""
    n = int(np.prod(SHAPE))
    rows = np.frombuffer(_core.Plan(str(path)).read("self_test"), "<f4").reshape(4, 2 * n + 2)
    return rows[:, :n], rows[:, n], rows[:, n + 1], rows[:, n + 2 :]


@pytest.mark.parametrize("t_type", [TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16])
def test_a_file_with_its_card_becomes_a_plan_that_runs(tmp_path, t_type):
    simple(tmp_path / "m.onnx", t_type=t_type)
    (tmp_path / "m.json").write_text(json.dumps(CARD))
    export_onnx(tmp_path / "m.onnx", None, tmp_path / "m.plan", defaults={"sampler": "ddpm", "steps": 7})
    x, t, _, expected = stored_of(tmp_path / "m.plan")
    np.testing.assert_allclose(
        expected, 0.5 * x + t[:, None] / 1000, atol=1e-3 if t_type == TensorProto.FLOAT16 else 1e-6
    )
    with ddpm_rt.Engine(tmp_path / "m.plan", threads=1, cache_dir="") as engine:
        assert engine.info()["defaults"]["sampler"] == "ddpm" and engine.info()["defaults"]["steps"] == 7
        assert engine.sample(2, seed=0).shape == (2, 4, 4, 2)
        assert engine.info()["self_test"]["status"] == "passed"


def test_labels_and_sources(tmp_path):
    simple(tmp_path / "m.onnx", label=True)
    card = CARD | {
        "inputs": CARD["inputs"] | {"label": "digit"},
        "class_names": ["a", "b"],
        "licence": "CC0",
        "name": "mine",
    }
    export_onnx(tmp_path / "m.onnx", card, tmp_path / "m.plan")
    x, t, label, expected = stored_of(tmp_path / "m.plan")
    assert set(label) == {0, 1, 2}
    np.testing.assert_allclose(expected, 0.5 * x + t[:, None] / 1000 + label[:, None], atol=1e-6)
    m = json.loads(_core.Plan(str(tmp_path / "m.plan")).manifest)
    assert m["name"] == "mine" and m["licence"] == "CC0" and m["networks"]["unet"]["inputs"]["label"] == "digit"
    assert set(m["sources"]) == {"onnx_sha256", "card_sha256"} and m["defaults"]["steps"] == 5


def test_an_engine_opens_the_onnx_file_itself(tmp_path):
    simple(tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(json.dumps(CARD))
    with ddpm_rt.Engine(tmp_path / "m.onnx", threads=1, cache_dir="") as engine:
        assert engine.sample(1, seed=0, steps=2).shape == (1, 4, 4, 2)


def test_group_normalization_is_lowered_and_means_the_same(tmp_path):
    """GroupNormalization, then a scale and shift per sample: what OpenVINO 2026.4 crashes on."""
    from onnx.reference import ReferenceEvaluator

    gamma, beta = np.linspace(0.5, 2, 4, dtype=np.float32), np.linspace(-1, 1, 4, dtype=np.float32)
    nodes = [
        helper.make_node("GroupNormalization", ["noisy", "gamma", "beta"], ["normal"], num_groups=2, epsilon=1e-3),
        helper.make_node("Reshape", ["step", "column"], ["wide"]),
        helper.make_node("Mul", ["normal", "wide"], ["film"]),
        helper.make_node("Add", ["film", "wide"], ["noise"]),
    ]
    weights = [("gamma", gamma), ("beta", beta), ("column", np.array([-1, 1, 1, 1], np.int64))]
    shape = [4, 4, 4]
    inputs = [value("noisy", TensorProto.FLOAT, ["B", *shape]), value("step", TensorProto.FLOAT, ["B"])]
    make(tmp_path / "g.onnx", nodes, inputs, [value("noise", TensorProto.FLOAT, ["B", *shape])], weights, 21)
    model = onnx.load(tmp_path / "g.onnx")
    assert lower_group_norm(model) == 1
    onnx.checker.check_model(model)
    assert all(n.op_type != "GroupNormalization" for n in model.graph.node)
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    t = np.array([1, 2, 3], np.float32)
    grouped = x.reshape(3, 2, -1)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-3)
    normal = normal.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]
    expected = normal * t[:, None, None, None] + t[:, None, None, None]
    found = ReferenceEvaluator(model).run(None, {"noisy": x, "step": t})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    export_onnx(tmp_path / "g.onnx", CARD | {"sample": {"shape": shape}}, tmp_path / "g.plan")
    with ddpm_rt.Engine(tmp_path / "g.plan", threads=1, cache_dir="") as engine:
        engine.sample(1, seed=0, steps=1)
        assert engine.info()["self_test"]["status"] == "passed"


def test_without_a_card_the_error_shows_what_to_write(tmp_path):
    simple(tmp_path / "m.onnx")
    with pytest.raises(PlanError) as e:
        export_onnx(tmp_path / "m.onnx", None, tmp_path / "m.plan")
    text = str(e.value)
    assert "m.json" in text and "noisy ['B', 2, 4, 4]" in text
    example = json.loads(text[text.index("{") :])
    assert example["inputs"] == {"x": "noisy", "t": "step"} and example["sample"]["shape"] == SHAPE
    example["outputs"]["eps"] = "noise"  # the only thing that a reader has to fill in here
    example["schedule"]["T"] = 100
    export_onnx(tmp_path / "m.onnx", example, tmp_path / "m.plan")
    assert (tmp_path / "m.plan").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": None}, "expected schedule, got"),
        ({"inputs": {"x": "noisy"}}, "inputs.t: expected the name of a tensor, got none"),
        ({"inputs": {"x": "noisy", "t": "stop"}}, "inputs.t: expected one of the graph's noisy, step, got 'stop'"),
        ({"outputs": {"eps": "nose"}}, "outputs.eps: expected one of the graph's noise, got 'nose'"),
        ({"outputs": {"x0": "noise"}}, "outputs: expected eps -> name of a tensor"),
        ({"sample": {"shape": [3, 4, 4]}}, "sample.shape: expected the shape of the graph's noisy"),
        ({"sample": {}}, "sample.shape: expected sizes"),
        ({"sample": []}, "sample: expected an object"),
        ({"class_names": ["a"]}, "classes without inputs.label"),
        ({"prediction": "velocity"}, "card: prediction: expected one of eps, x0, v"),
        ({"shedule": 1}, "expected keys among .*, got 'shedule'"),
        ({"schedule": {"betas": [0.1, 2]}}, "betas"),
        ({"defaults": {"steps": 1000}}, "defaults"),
    ],
)
def test_a_wrong_card_is_named_by_its_field(tmp_path, changes, message):
    simple(tmp_path / "m.onnx")
    card = {k: v for k, v in (CARD | changes).items() if v is not None}
    with pytest.raises(PlanError, match=message):
        export_onnx(tmp_path / "m.onnx", card, tmp_path / "m.plan")
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


def test_graphs_that_cannot_be_plans_are_refused(tmp_path):
    simple(tmp_path / "fixed.onnx", batch=3)
    with pytest.raises(PlanError, match="expected a free batch dimension first, got noisy \\[3, 2, 4, 4\\]"):
        export_onnx(tmp_path / "fixed.onnx", CARD, tmp_path / "m.plan")
    simple(tmp_path / "label.onnx", label=True)
    with pytest.raises(PlanError, match="expected a role .* got none for \\['digit'\\]"):
        export_onnx(tmp_path / "label.onnx", CARD, tmp_path / "m.plan")
    coupled = [
        helper.make_node("ReduceMean", ["noisy", "first"], ["mean"], keepdims=1),
        helper.make_node("Cast", ["step"], ["time"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["time", "column"], ["wide"]),
        helper.make_node("Sub", ["noisy", "mean"], ["off"]),
        helper.make_node("Add", ["off", "wide"], ["noise"]),
    ]
    axes = [("first", np.array([0], np.int64)), ("column", np.array([-1, 1, 1, 1], np.int64))]
    simple(tmp_path / "coupled.onnx", nodes=coupled, weights=axes)
    with pytest.raises(PlanError, match="couples the batch axis"):
        export_onnx(tmp_path / "coupled.onnx", CARD, tmp_path / "m.plan")
    assert not (tmp_path / "m.plan").exists()


def test_external_data_and_rubbish_are_refused(tmp_path):
    simple(tmp_path / "m.onnx", weights=[("big", np.zeros(2000, np.float32))])
    model = onnx.load(tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0, location="e.data")
    with pytest.raises(PlanError, match="initializer .*: expected weights inside the file, got external data"):
        export_onnx(tmp_path / "e.onnx", CARD, tmp_path / "m.plan")
    (tmp_path / "r.onnx").write_bytes(b"\x00not an onnx file")
    with pytest.raises(PlanError, match="r.onnx: expected an ONNX model"):
        export_onnx(tmp_path / "r.onnx", CARD, tmp_path / "m.plan")
    with pytest.raises(PlanError, match="none.onnx: expected an ONNX file that can be read"):
        export_onnx(tmp_path / "none.onnx", CARD, tmp_path / "m.plan")
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(PlanError, match="card.json: expected JSON"):
        export_onnx(tmp_path / "m.onnx", tmp_path / "card.json", tmp_path / "m.plan")
    assert not (tmp_path / "m.plan").exists()
