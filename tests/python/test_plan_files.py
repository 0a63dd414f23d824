"""Finding plans: paths, names, and raw ONNX models with a card."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import write_mixture_plan

import ddpm_rt
from ddpm_rt import plan_files


def test_shipped_plans_have_names():
    assert "digits" in plan_files.shipped()
    assert plan_files.find("digits") == plan_files.MODELS / "digits.plan"


def test_a_name_is_looked_for_in_the_package_the_environment_and_here(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "models").mkdir()
    write_mixture_plan(tmp_path / "mine" / "one.plan")
    write_mixture_plan(tmp_path / "models" / "two.plan")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_RT_MODELS", str(tmp_path / "mine"))
    assert plan_files.find("one") == tmp_path / "mine" / "one.plan"
    assert plan_files.find("two").resolve() == tmp_path / "models" / "two.plan"
    with pytest.raises(ddpm_rt.PlanError, match=r"\(digits, one, two\), got 'three'"):
        plan_files.find("three")


def test_a_path_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = write_mixture_plan(tmp_path / "digits")  # the same name, but said as a path
    assert plan_files.find("./digits").resolve() == plan and plan_files.find(plan) == plan
    with ddpm_rt.Engine("./digits") as engine:
        assert engine.info()["backend"] != "openvino"


@pytest.fixture
def model(tmp_path):
    """eps = x / 10 + 0 t, as ONNX."""
    onnx = pytest.importorskip("onnx")
    helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
    constants = [
        helper.make_tensor("tenth", FLOAT, [], [0.1]),
        helper.make_tensor("zero", FLOAT, [], [0.0]),
        helper.make_tensor("column", onnx.TensorProto.INT64, [4], [-1, 1, 1, 1]),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "tenth"], ["a"]),
        helper.make_node("Mul", ["t", "zero"], ["b"]),
        helper.make_node("Reshape", ["b", "column"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["eps"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", FLOAT, ["B", 1, 4, 4]), helper.make_tensor_value_info("t", FLOAT, ["B"])],
        [helper.make_tensor_value_info("eps", FLOAT, ["B", 1, 4, 4])],
        constants,
    )
    path = tmp_path / "toy.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


CARD = {
    "inputs": {"x": "x", "t": "t"},
    "outputs": {"eps": "eps"},
    "sample": {"shape": [1, 4, 4], "role": "image", "range": [-1, 1]},
    "schedule": {"name": "linear", "T": 1000},
    "prediction": "eps",
    "defaults": {"sampler": "ddim", "steps": 5, "scale": 1.0},
}


@pytest.mark.parametrize("beside", [True, False])
def test_a_raw_onnx_model_runs_with_its_card(model, beside):
    card = model.with_suffix(".json") if beside else model.with_name("elsewhere.json")
    card.write_text(json.dumps(CARD))
    with ddpm_rt.Engine(model, card=None if beside else card) as engine:
        x = engine.sample(2, seed=0, output="float")
    with ddpm_rt.Engine.from_callable(lambda x, t, labels: x / 10, (1, 4, 4), defaults={"steps": 5}) as engine:
        assert np.abs(x - engine.sample(2, seed=0, output="float")).max() < 1e-5


def test_without_a_card_the_error_says_what_to_write(model):
    with pytest.raises(ddpm_rt.PlanError, match=r'(?s)toy.*"sample": \{.*"schedule"'):
        ddpm_rt.Engine(model)
