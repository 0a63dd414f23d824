"""Conditions over a network whose output says what it was given: eps = shift + the sum of the texts that count + 100 label."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "cuda_emulation"))
import emulated

import ddpm_rt
import ddpm_rt.export
from ddpm_rt import _core

onnx = pytest.importorskip("onnx")
N, LENGTH, AB = 4, 3, np.array([0.5])  # one timestep: a sample is x_T - eps, times a constant


def graph(classes, masked):
    from onnx import TensorProto as T
    from onnx import helper as h

    nodes = [
        h.make_node("Unsqueeze", ["text_mask", "last"], ["wide"]),
        h.make_node("Mul", ["text", "wide"], ["counted"]),
    ]  # fmt: skip
    nodes = [
        *(nodes if masked else []),
        h.make_node("ReduceSum", ["counted" if masked else "text", "middle"], ["text_sum"], keepdims=0),
        h.make_node("Add", ["shift", "text_sum"], ["conditions"]),
        h.make_node("Add", ["x", "conditions"], ["with_x"]),
        h.make_node("Sub", ["with_x", "x"], ["y"]),
        h.make_node("Unsqueeze", ["t", "middle"], ["t_wide"]),
        h.make_node("Add", ["y", "t_wide"], ["timed"]),
    ]
    inputs = [("x", ["B", N]), ("t", ["B"]), ("shift", ["B", N]), ("text", ["B", LENGTH, N]), *([("text_mask", ["B", LENGTH])] if masked else [])]
    given = [h.make_tensor_value_info(name, T.FLOAT, shape) for name, shape in inputs]
    if classes:
        given.append(h.make_tensor_value_info("label", T.INT64, ["B"]))
        nodes += [h.make_node("Cast", ["label"], ["number"], to=T.FLOAT), h.make_node("Unsqueeze", ["number", "middle"], ["number_wide"]),
                  h.make_node("Mul", ["number_wide", "hundred"], ["labelled"]), h.make_node("Add", ["timed", "labelled"], ["eps"])]  # fmt: skip
    else:
        nodes.append(h.make_node("Identity", ["timed"], ["eps"]))
    constants = [h.make_tensor("last", T.INT64, [1], [2]), h.make_tensor("middle", T.INT64, [1], [1]), h.make_tensor("hundred", T.FLOAT, [], [100.0])]
    made = h.make_graph(nodes, "g", given, [h.make_tensor_value_info("eps", T.FLOAT, ["B", N])], constants)
    return h.make_model(made, opset_imports=[h.make_opsetid("", 18)], ir_version=9).SerializeToString()


def write_plan(path, classes=0, masked=True, wrong=0.0, **conditions):
    rng = np.random.default_rng(0)
    x, shift, text, mask = rng.standard_normal((2, N)), rng.standard_normal((2, N)), rng.standard_normal((2, LENGTH, N)), [[1, 0, 0], [1, 1, 0]]
    mask = np.array(mask, float)
    eps = shift + (text * mask[..., None] if masked else text).sum(1) + wrong
    rows = [x, np.zeros((2, 1)), np.zeros((2, 1)), shift, text.reshape(2, -1), *([mask] if masked else []), eps]
    optional = [*(["text_mask"] if masked else []), *(["label"] if classes else [])]
    inputs = {k: k for k in ("x", "t", "shift", "text", *optional)}
    entries = {"shift": {"shape": [N], "null": "zero"}, "text": {"shape": [N], "max_length": LENGTH, "mask": True, "null": "zero"}}
    manifest = {
        "format": 1, "row_version": 1, "rng_version": 1, "name": "told",
        "networks": {"unet": {"kind": "onnx", "section": "unet", "inputs": inputs, "outputs": {"eps": "eps"}}},
        "stages": [{"kind": "diffusion", "network": "unet"}],
        "conditions": {k: {**v, **conditions.get(k, {})} for k, v in entries.items()},
        "sample": {"shape": [N]}, "schedule": {"section": "alpha_bar", "T": 1}, "prediction": "eps",
        "defaults": {"sampler": "ddim", "steps": 1},
        "self_test": {"section": "self_test", "count": 2, "tolerance": {"fp32": 1e-4}},
    }  # fmt: skip
    if classes:
        manifest["conditions"]["label"] = {"role": "class", "classes": classes, "null": classes}
    sections = {"alpha_bar": AB.tobytes(), "unet": graph(classes, masked),
                "self_test": np.concatenate(rows, 1).astype("<f4").tobytes()}  # fmt: skip
    _core.write_plan(str(path), json.dumps(manifest), sections)
    return path


def opened(path):
    return ddpm_rt.Engine(path, precision="fp32", cache_dir="")


def eps_of(engine, n=1, **options):
    """What the network answered, guidance included: x_0 = (x_T - sqrt(1 - ab) eps) / sqrt(ab) with x_T = 0."""
    images = engine.sample(n, x_init=np.zeros((n, N), np.float32), **options)
    return -np.asarray(images) * np.sqrt(AB[0] / (1 - AB[0]))


def ones(*shape, value=1.0):
    return np.full(shape, value, np.float32)


def test_texts_are_padded_and_the_padding_does_not_count(tmp_path):
    with opened(write_plan(tmp_path / "a.plan")) as engine:
        texts = [ones(1, N), ones(3, N, value=2), ones(2, N, value=5)]
        got = eps_of(engine, 3, cond={"shift": ones(N, value=0.5), "text": texts})
        assert np.allclose(got, np.array([1.5, 6.5, 10.5])[:, None])
        assert engine.info()["conditions"]["text"] == {"shape": [N], "max_length": 3, "mask": True, "role": "vector", "null": "zero"}


def test_the_null_value_is_the_plan_s_or_the_call_s(tmp_path):
    cond, negative = {"shift": ones(N), "text": ones(2, N)}, {"text": ones(1, N, value=10)}
    expected = {  # e = u + 3 (c - u), c = 1 + 2
        "zero": 3 * 3 - 2 * 0, "same": 3 * 3 - 2 * 1,
    }  # fmt: skip
    for null, value in expected.items():
        with opened(write_plan(tmp_path / f"{null}.plan", shift={"null": null})) as engine:
            assert np.allclose(eps_of(engine, cond=cond, scale=3), value)
            assert np.allclose(eps_of(engine, cond=cond, scale=3, negative=negative), value - 2 * 10)
            assert np.allclose(eps_of(engine, cond=cond, scale=0), 0 if null == "zero" else 1)
            assert np.allclose(eps_of(engine, cond=cond), 3)
    with opened(write_plan(tmp_path / "none.plan", text={"null": None})) as engine:
        with pytest.raises(ddpm_rt.OptionError, match="negative: expected text where scale is not 1"):
            eps_of(engine, cond=cond, scale=3)
        assert np.allclose(eps_of(engine, cond=cond, scale=3, negative=negative), 9 - 20)
        for options in ({}, {"scale": 3, "guidance_interval": (5, 6)}):  # nothing is guided
            assert np.allclose(eps_of(engine, cond=cond, **options), 3)


def test_labels_and_conditions_are_dropped_together(tmp_path):
    cond = {"shift": ones(N), "text": ones(1, N)}
    with opened(write_plan(tmp_path / "a.plan", classes=2)) as engine:
        assert np.allclose(eps_of(engine, 3, cond=cond, labels=[0, 1, -1])[:, 0], [2, 102, 202])
        assert np.allclose(eps_of(engine, cond=cond, labels=1, scale=2), 2 * 102 - 200)  # u: the null label and no conditions
        assert np.allclose(eps_of(engine, cond=cond, labels=1, scale=2, negative=0), 2 * 102 - 0)
        assert np.allclose(eps_of(engine, cond=cond, labels=1, scale=2, negative={"shift": ones(N, value=7)}), 2 * 102 - 207)


def test_a_guide_reads_the_same_conditions(tmp_path):
    cond = {"shift": ones(N), "text": ones(1, N)}
    with opened(write_plan(tmp_path / "a.plan")) as engine, opened(write_plan(tmp_path / "b.plan")) as guide:
        assert np.allclose(eps_of(engine, cond=cond, scale=3, guide=guide), 2)
        with pytest.raises(ddpm_rt.OptionError, match="negative: expected it unset with guide"):
            eps_of(engine, cond=cond, scale=3, guide=guide, negative={"shift": ones(N)})
        with ddpm_rt.Engine.from_callable(lambda x, t, labels: x + 1, (N,), {"alpha_bar": AB}) as plain:
            assert np.allclose(eps_of(engine, cond=cond, scale=3, guide=plain), 3 * 2 - 2 * 1)
            with pytest.raises(ddpm_rt.OptionError, match="guide: expected an engine without conditions"):
                plain.sample(1, guide=engine, scale=3)


def test_the_self_test_reads_conditions(tmp_path):
    with opened(write_plan(tmp_path / "a.plan", wrong=0.5)) as engine, pytest.raises(ddpm_rt.BackendError, match="self-test"):
        engine.sample(1, cond={"shift": ones(N), "text": ones(1, N)})
    with opened(write_plan(tmp_path / "b.plan")) as engine:
        engine.sample(1, cond={"shift": ones(N), "text": ones(1, N)})
        assert engine.info()["self_test"]["status"] == "passed"


def test_a_length_that_no_mask_tells_is_the_plan_s(tmp_path):
    plan = tmp_path / "a.plan"
    with pytest.raises(ddpm_rt.PlanError, match="inputs.text_mask: expected roles among"):
        write_plan(plan, text={"mask": False})
    with opened(write_plan(plan, masked=False, text={"mask": False})) as engine:
        assert np.allclose(eps_of(engine, cond={"shift": ones(N), "text": ones(3, N)}), 4)
        for value in (ones(2, N), ones(4, N)):
            with pytest.raises(ddpm_rt.ShapeError, match=r"cond\.text: expected a length of 3, got .: this network has no mask"):
                engine.sample(1, cond={"shift": ones(N), "text": value})


def test_a_gpu_is_refused(tmp_path):
    plan = write_plan(tmp_path / "a.plan")
    with pytest.raises(ddpm_rt.DeviceError, match="conditions beside the label"):
        ddpm_rt.Engine(plan, device="cuda", cuda_library=emulated.library())
    with ddpm_rt.Engine(plan, device="auto", cuda_library=emulated.library()) as engine:
        assert engine.info()["device"] == "cpu"


def test_inspect_and_the_command_line(tmp_path, run):
    plan = write_plan(tmp_path / "a.plan")
    assert re.search(r"condition +text vector, up to 3 of \[4\], null zero", run("inspect", plan).stdout)
    np.save(tmp_path / "s.npy", ones(N))
    for value, what in (("shift", "expected NAME=FILE.npy"), ("shift=nowhere.npy", "nowhere.npy")):
        done = run("sample", plan, "--cond", value, "-o", tmp_path / "a.npz")
        assert done.returncode == 2 and what in done.stderr
    done = run("sample", plan, "--cond", f"shift={tmp_path / 's.npy'}", "-o", tmp_path / "a.npz")
    assert done.returncode != 0 and "cond: expected shift, text; got no text" in done.stderr


def test_a_card_gives_an_onnx_file_conditions(tmp_path):
    (tmp_path / "net.onnx").write_bytes(graph(2, True).replace(b"text_mask", b"who_count"))  # any name of a tensor
    card = {
        "inputs": {"x": "x", "t": "t", "label": "label", "shift": "shift", "text": "text", "text_mask": "who_count"}, "outputs": {"eps": "eps"},
        "sample": {"shape": [N]}, "schedule": {"alpha_bar": AB.tolist()}, "prediction": "eps", "num_classes": 2,
        "conditions": {"text": {"shape": [N], "max_length": LENGTH, "mask": True}, "shift": {"shape": [N]}},
    }  # fmt: skip
    ddpm_rt.export.export_onnx(tmp_path / "net.onnx", card, tmp_path / "a.plan", defaults={"steps": 1})
    with opened(tmp_path / "a.plan") as engine:
        assert np.allclose(eps_of(engine, cond={"shift": ones(N), "text": ones(2, N)}, labels=1, scale=1), 103)
    for change, what in (
        ({"text": {"shape": [N], "max_length": LENGTH + 1, "mask": True}, "shift": {"shape": [N]}}, "conditions: expected the shape"),
        ({"text": {"shape": [N]}}, "inputs: expected x, t, label, text -> "),
        ({"text": {"shape": "long"}}, "card: "),
    ):
        with pytest.raises(ddpm_rt.PlanError, match=what):
            ddpm_rt.export.export_onnx(tmp_path / "net.onnx", card | {"conditions": change}, tmp_path / "b.plan")
