"""Plans of torch modules: parity, batch coupling, weights, manifest, and that an engine of each backend agrees."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import ddpm_rt
from ddpm_rt import _core
from ddpm_rt.errors import OptionError, PlanError
from ddpm_rt.export import export_plan
from ddpm_rt.reference import Schedule, UNet, UNetConfig


class Small(nn.Module):
    """eps of (x, t[, label]): a convolution, a group norm, FiLM of time and class."""

    def __init__(self, channels: int = 2, classes: int = 0, out: int | None = None):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.time = nn.Linear(1, 32)
        self.label = nn.Embedding(classes + 1, 32) if classes else None
        self.head = nn.Conv2d(16, out or channels, 3, padding=1)

    def forward(self, x, t, label=None):
        film = self.time(t[:, None] / 1000)
        if label is not None:
            film = film + self.label(label)
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        return self.head(nn.functional.silu(self.norm(self.conv(x)) * (1 + scale) + shift))


def manifest(path) -> dict:
    return json.loads(_core.Plan(str(path)).manifest)


@pytest.fixture(scope="module")
def small() -> Small:
    torch.manual_seed(0)
    return Small(classes=3)


@pytest.fixture(scope="module")
def small_plan(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "small.plan"
    result = export_plan(
        small, path, shape=(2, 8, 8), class_names=["a", "b", "c"], schedule={"name": "cosine", "T": 100}, licence="MIT"
    )
    assert result["parity"] < 1e-5 and result["bytes"] == path.stat().st_size
    return path


def test_the_manifest_says_what_was_asked(small_plan):
    m = manifest(small_plan)
    assert m["sample"] == {"shape": [2, 8, 8], "role": "image", "range": [-1.0, 1.0], "uint8": "round"}
    assert m["class_names"] == ["a", "b", "c"] and m["conditions"]["label"]["null"] == 3
    assert m["schedule"] == {"section": "alpha_bar", "T": 100, "name": "cosine"} and m["prediction"] == "eps"
    assert m["defaults"]["scale"] == 3.0 and m["defaults"]["steps"] == 50 and m["licence"] == "MIT"
    assert len(m["sources"]["weights_sha256"]) == 64
    stored = np.frombuffer(_core.Plan(str(small_plan)).read("alpha_bar"), "<f8")
    np.testing.assert_allclose(stored, Schedule.make("cosine", 100).alpha_bar, rtol=1e-12)


def test_the_stored_self_test_is_the_module_s_own_output(small, small_plan):
    rows = np.frombuffer(_core.Plan(str(small_plan)).read("self_test"), "<f4").reshape(4, 2 * 128 + 2)
    x, t, label, expected = rows[:, :128], rows[:, 128], rows[:, 129].astype(np.int64), rows[:, 130:]
    assert t[0] == 0 and t[-1] == 99 and 3 in label and len(set(label)) == 4
    with torch.no_grad():
        out = small(torch.from_numpy(x.reshape(4, 2, 8, 8).copy()), torch.from_numpy(t.copy()), torch.from_numpy(label))
    np.testing.assert_allclose(expected.reshape(4, 2, 8, 8), out.numpy(), atol=1e-6)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_engine_runs_the_plan_and_equals_the_reference_loop(small, small_plan, backend):
    """8 DDIM steps from given noise: the engine against float32 torch and the formula (Song et al. eq. 12, eta 0)."""
    noise = np.random.default_rng(1).standard_normal((3, 2, 8, 8)).astype(np.float32)
    with ddpm_rt.Engine(small_plan, backend=backend, threads=1, cache_dir="") as engine:
        found = engine.sample(3, labels=[0, 1, 2], scale=2.0, steps=8, clip="none", latents=noise, output="float")
        assert engine.info()["self_test"]["status"] == "passed"
    ab = Schedule.make("cosine", 100).alpha_bar.numpy()
    times = [i * (100 // 8) for i in reversed(range(8))]
    x, label = torch.from_numpy(noise), torch.arange(3)
    for i, t in enumerate(times):
        a, p = ab[t], ab[times[i + 1]] if i + 1 < 8 else 1.0
        with torch.no_grad():
            c = small(x, torch.full((3,), float(t)), label)
            u = small(x, torch.full((3,), float(t)), torch.full((3,), 3))
        e = u + 2 * (c - u)
        x = float(p**0.5) * (x - float((1 - a) ** 0.5) * e) / float(a**0.5) + float((1 - p) ** 0.5) * e
    error = np.abs(np.asarray(found) - x.numpy()).max() / np.abs(x.numpy()).max()
    assert error < 1e-3  # the cosine schedule's first steps amplify float32 rounding by 1 / sqrt(alpha_bar)


def test_half_weights_halve_the_file_and_stay_close(tmp_path):
    torch.manual_seed(1)
    wide = Small(4)
    wide.conv = nn.Conv2d(4, 16, 9, padding=4)
    wide.head = nn.Conv2d(16, 4, 9, padding=4)
    full = export_plan(wide, tmp_path / "full.plan", shape=(4, 8, 8))
    half = export_plan(wide, tmp_path / "half.plan", shape=(4, 8, 8), weights="fp16")
    assert full["parity"] < 1e-5 < half["parity"] < 2e-2
    graphs = [_core.Plan(str(tmp_path / f"{n}.plan")).read("unet.onnx") for n in ("full", "half")]
    assert len(graphs[1]) < 0.65 * len(graphs[0])
    weights = onnx.load_from_string(graphs[1]).graph.initializer
    types = {int(np.prod(t.dims)): t.data_type for t in weights if t.data_type != onnx.TensorProto.INT64}
    assert types[4 * 16 * 81] == onnx.TensorProto.FLOAT16 and types[16] == onnx.TensorProto.FLOAT  # biases stay
    with ddpm_rt.Engine(tmp_path / "half.plan", threads=1, cache_dir="") as engine:
        engine.sample(1, steps=1)  # compiles, and then tests
        assert engine.info()["self_test"]["error"] < 2e-4  # held to the rounded weights, at float32's tolerance


def test_values_beyond_float16_stay_float32(tmp_path):
    torch.manual_seed(0)
    big = Small()
    with torch.no_grad():
        big.conv.weight[0, 0, 0, 0] = 1e6
    export_plan(big, tmp_path / "big.plan", shape=(2, 8, 8), weights="fp16")
    proto = onnx.load_from_string(_core.Plan(str(tmp_path / "big.plan")).read("unet.onnx"))
    types = {t.name: t.data_type for t in proto.graph.initializer}
    assert types["module.conv.weight"] == onnx.TensorProto.FLOAT


class Centred(Small):
    def forward(self, x, t):
        return super().forward(x - x.mean(0, keepdim=True), t)


class BatchNormed(Small):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x, t):
        return super().forward(self.bn(x), t)


class Ordered(Small):
    """Depends on a row's place, not on its neighbours."""

    def forward(self, x, t):
        return super().forward(x, t) + torch.arange(x.shape[0])[:, None, None, None] * 0.1


@pytest.mark.parametrize("kind", [Centred, BatchNormed, Ordered])
def test_a_module_that_couples_the_batch_is_refused(tmp_path, kind):
    torch.manual_seed(0)
    with pytest.raises(PlanError, match="couples the batch axis"):
        export_plan(kind(), tmp_path / "coupled.plan", shape=(2, 8, 8))
    assert list(tmp_path.iterdir()) == []


class RunningBatchNorm(Small):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x, t):
        return super().forward(self.bn(x), t)


def test_batch_norm_with_running_statistics_is_no_coupling(tmp_path):
    torch.manual_seed(0)
    module = RunningBatchNorm().train()
    export_plan(module, tmp_path / "bn.plan", shape=(2, 8, 8))
    assert module.training  # the caller's module is left as it was


def test_a_learned_variance_is_left_out(tmp_path):
    torch.manual_seed(0)
    module = Small(out=4)
    export_plan(module, tmp_path / "lv.plan", shape=(2, 8, 8))
    rows = np.frombuffer(_core.Plan(str(tmp_path / "lv.plan")).read("self_test"), "<f4").reshape(4, 2 * 128 + 2)
    with torch.no_grad():
        out = module(torch.from_numpy(rows[:, :128].reshape(4, 2, 8, 8).copy()), torch.from_numpy(rows[:, 128].copy()))
    np.testing.assert_allclose(rows[:, 130:].reshape(4, 2, 8, 8), out[:, :2].numpy(), atol=1e-6)


class Vector(nn.Module):
    """Rank 1, integer time through an embedding table, the result inside an object as diffusers has it."""

    def __init__(self):
        super().__init__()
        self.time, self.net = nn.Embedding(50, 8), nn.Linear(13, 5)

    def forward(self, x, t):
        class Output:
            pass

        out = Output()
        out.sample = self.net(torch.cat([x, self.time(t)], dim=1))
        return out


def test_vectors_integer_time_and_given_betas(tmp_path):
    torch.manual_seed(0)
    betas = np.linspace(1e-3, 0.1, 50)
    export_plan(Vector(), tmp_path / "v.plan", shape=(5,), schedule=betas, integer_time=True, defaults={"steps": 10})
    m = manifest(tmp_path / "v.plan")
    assert m["sample"]["role"] == "vector" and m["defaults"]["clip"] == "none" and m["defaults"]["scale"] == 1.0
    with ddpm_rt.Engine(tmp_path / "v.plan", threads=1, cache_dir="") as engine:
        out = engine.sample(3, seed=0)
    assert out.shape == (3, 5) and out.dtype == np.float32 and np.isfinite(out).all()


@pytest.mark.slow
def test_rows_and_trunk_are_split_unless_told_otherwise(tmp_path):
    torch.manual_seed(0)
    cfg = UNetConfig((8, 8), 1, 8, (1, 2), 1, (1,), heads=2, groups=4, num_classes=2)
    net = UNet(cfg)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    export_plan(net, tmp_path / "split.plan", shape=(1, 8, 8), num_classes=2)
    export_plan(net, tmp_path / "whole.plan", shape=(1, 8, 8), num_classes=2, split=False)
    split, whole = manifest(tmp_path / "split.plan"), manifest(tmp_path / "whole.plan")
    with torch.no_grad():
        width = net.rows(torch.zeros(1), torch.zeros(1, dtype=torch.int64)).shape[1]
    assert split["networks"]["temb"]["rows_width"] == width and split["stages"][0]["temb"] == "temb"
    assert set(split["networks"]["unet"]["inputs"]) == {"x", "rows"}
    assert set(whole["networks"]) == {"unet"} and set(whole["networks"]["unet"]["inputs"]) == {"x", "t", "label"}
    images = []
    for name in ("split", "whole"):
        with ddpm_rt.Engine(tmp_path / f"{name}.plan", threads=1, cache_dir="") as engine:
            images.append(np.asarray(engine.sample(2, labels=[0, 1], steps=5, seed=1, output="float")))
    np.testing.assert_allclose(images[0], images[1], atol=2e-4)
    with pytest.raises(OptionError, match="split: expected a module with the methods"):
        export_plan(Small(), tmp_path / "no.plan", shape=(2, 8, 8), split=True)


def test_graphs_are_in_the_form_that_backends_fuse(small_plan):
    proto = onnx.load_from_string(_core.Plan(str(small_plan)).read("unet.onnx"))
    kinds = {n.op_type for n in proto.graph.node}
    assert "GroupNormalization" not in kinds and "InstanceNormalization" in kinds and {"Sigmoid", "Mul"} <= kinds
    assert all(o.version == 18 for o in proto.opset_import if o.domain == "")
    assert all(v.type.tensor_type.shape.dim[0].dim_param for v in (*proto.graph.input, *proto.graph.output))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (0, 8)}, "shape: expected 1 to 4 positive sizes"),
        ({"shape": (2, 8), "role": "image"}, r"shape: expected \[C, H, W\]"),
        ({"prediction": "guess"}, "prediction: expected one of eps, x0, v, .*got 'guess'"),
        ({"weights": "int8"}, "weights: expected one of fp32, fp16"),
        ({"defaults": {"stepz": 3}}, "defaults: expected one of sampler, steps"),
        ({"class_names": ["a"], "num_classes": 2}, "class_names: expected 2 names"),
        ({"schedule": "lineal"}, "schedule"),
        ({"data_range": (1,)}, "data_range"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(OptionError, match=message):
        export_plan(Small(), tmp_path / "bad.plan", **{"shape": (2, 8, 8), **changes})
    assert list(tmp_path.iterdir()) == []


class Raises(nn.Module):
    def forward(self, x, t):
        raise ZeroDivisionError("my own fault")


class Branches(nn.Module):
    def forward(self, x, t):
        return x * 2 if float(x.sum()) > 0 else x * 3


class WrongShape(nn.Module):
    def forward(self, x, t):
        return x[:, :, :4]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Raises(), "ZeroDivisionError: my own fault"),
        (Branches(), "expected one that torch.onnx can export"),
        (WrongShape(), r"expected an output of shape \[4, 2, 8, 8\]"),
    ],
)
def test_modules_that_cannot_be_exported_are_plan_errors(tmp_path, module, message):
    with pytest.raises(PlanError, match=message):
        export_plan(module, tmp_path / "bad.plan", shape=(2, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_model_beyond_two_gigabytes_is_refused_before_any_work(tmp_path):
    with torch.device("meta"):
        huge = nn.Linear(2**15, 2**15)
    with pytest.raises(PlanError, match="at most 2147483647 bytes of weights"):
        export_plan(huge, tmp_path / "huge.plan", shape=(2, 8, 8))
