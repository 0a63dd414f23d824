"""ddpm_rt/importers/edm.py: pickles as EDM's persistence writes them, end to end against a float64 loop of Karras et al.

The pickles are written here, with the nesting, the names and the reductions of torch_utils/persistence.py; no original file was
read.
"""

from __future__ import annotations

import math
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest

import ddpm_rt
import ddpm_rt.export

torch = pytest.importorskip("torch")

from ddpm_rt.importers import edm, edm_pickle
from ddpm_rt.importers.edm_networks import DhariwalUNet, SongUNet

SMALL = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}


def _reconstruct_persistent_obj(meta):
    raise AssertionError("executed")


class _Persistent:
    """What a persistent class's instance reduces to."""

    def __init__(self, kind: str, state: dict) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "import os\nos.abort()\n",
            "class_name": kind,
            "state": state,
        }

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def _module(net: torch.nn.Module, arguments: dict | None = None) -> _Persistent:
    state = {
        "training": False,
        "_parameters": dict(net._parameters),
        "_buffers": dict(net._buffers),
        "_modules": {k: None if m is None else _module(m) for k, m in net._modules.items()},
        "_init_args": (),
        "_init_kwargs": dict(arguments or {}),
    }
    return _Persistent(type(net).__name__, state)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """save(kind, net, arguments of F, attributes of the preconditioning) -> the file"""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    package = types.ModuleType("torch_utils")
    package.persistence = module

    def save(kind, net, arguments, outer, buffers=None):
        inner = _module(net, arguments)
        state = {
            "_parameters": {},
            "_buffers": buffers or {},
            "_modules": {"model": inner},
            "_init_args": (),
            "_init_kwargs": outer,
        }
        path = tmp_path / f"{kind}.pkl"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch_utils", package)
            patch.setitem(sys.modules, "torch_utils.persistence", module)
            path.write_bytes(pickle.dumps({"ema": _Persistent(kind, state), "loss_fn": _Persistent("EDMLoss", {"P_mean": -1.2}),
                                           "augment_pipe": None, "dataset_kwargs": {"resolution": 8}}))  # fmt: skip
        return path

    return save


def network(kind, **changes):
    torch.manual_seed(0)
    base = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 0}
    arguments = base | SMALL | ({"model_channels": 64} if kind is DhariwalUNet else {}) | changes
    net = kind(**arguments)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.08 if p.ndim > 1 else 0.3)
    for name, b in net.named_buffers():
        if name.endswith("freqs"):
            torch.nn.init.normal_(b, std=4.0)
    return net.eval(), arguments


def heun(denoise, unit, levels):
    """Karras et al. algorithm 2 without churn, in float64.  levels: sigma_0 > ... > sigma_{N-1}"""
    x, ends = unit.astype(np.float64) * levels[0], [*levels, 0.0]
    for here, to in zip(levels, ends[1:], strict=True):
        d = (x - denoise(x, here)) / here
        moved = x + (to - here) * d
        if to > 0:
            d = (d + (moved - denoise(moved, to)) / to) / 2
        x = x + (to - here) * d
    return x


def ramp(n, low, high):
    return [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)]


def evaluated(net, x, told, labels):
    with torch.no_grad():
        t = torch.full((len(x),), float(told))
        return net(torch.from_numpy(x.astype(np.float32)), t, labels).double().numpy()[:, :3]


@pytest.mark.slow
def test_edm_preconditioning_with_labels(saved, tmp_path):
    net, arguments = network(SongUNet, label_dim=4, augment_dim=9, **NCSNPP)
    path = saved(
        "EDMPrecond", net, arguments, {"img_resolution": 8, "img_channels": 3, "label_dim": 4, "use_fp16": True}
    )
    labels = torch.eye(5)[[2, 4]][:, :4]  # the second has none

    def denoise(x, s):
        root = math.hypot(s, 0.5)
        return 0.25 / root**2 * x + 0.5 * s / root * evaluated(net, x / root, math.log(s) / 4, labels)

    _compared(path, tmp_path, denoise, ramp(5, 0.002, 80.0), labels=[2, -1])


def test_vp_preconditioning(saved, tmp_path):
    net, arguments = network(SongUNet)
    path = saved("VPPrecond", net, arguments, {"img_resolution": 8, "img_channels": 3, "label_dim": 0})

    def denoise(x, s):
        t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + s**2)) - 0.1) / 19.9
        return x - s * evaluated(net, x / math.hypot(s, 1), 999 * t, None)

    _compared(path, tmp_path, denoise, ramp(5, 0.002, 80.0))


@pytest.mark.slow
def test_ve_preconditioning(saved, tmp_path):
    net, arguments = network(SongUNet, **(NCSNPP | {"encoder_type": "skip", "decoder_type": "skip"}))
    path = saved(
        "VEPrecond", net, arguments, {"img_resolution": 8, "img_channels": 3, "sigma_min": 0.02, "sigma_max": 100}
    )
    _compared(path, tmp_path, lambda x, s: x + s * evaluated(net, x, math.log(s / 2), None), ramp(5, 0.02, 80.0))


@pytest.mark.slow
def test_iddpm_preconditioning(saved, tmp_path):
    net, arguments = network(DhariwalUNet, out_channels=6)
    u = [0.0]
    for j in range(1000, 0, -1):
        bars = [math.sin(0.5 * math.pi * i / 1000 / 1.008) ** 2 for i in (j - 1, j)]
        u.insert(0, math.sqrt((u[0] ** 2 + 1) / max(bars[0] / bars[1], 0.001) - 1))
    table = torch.tensor(u)
    path = saved("iDDPMPrecond", net, arguments, {"img_resolution": 8, "img_channels": 3}, buffers={"u": table})
    sigmas = table.double().numpy()
    nearest = [int(np.abs(sigmas - s).argmin()) for s in ramp(5, max(0.002, sigmas[999]), 80.0)]

    def denoise(x, s):
        return x - s * evaluated(net, x / math.hypot(s, 1), 999 - int(np.abs(sigmas - s).argmin()), None)

    _compared(path, tmp_path, denoise, [float(sigmas[j]) for j in nearest])


def _compared(path, tmp_path, denoise, levels, labels=None):
    unit = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = heun(denoise, unit, levels)
    manifest = ddpm_rt.export.export_model(path, tmp_path / "x.plan")["manifest"]
    assert manifest["defaults"]["steps"] == 18 and manifest["defaults"]["compat"] == "edm"
    with ddpm_rt.Engine(tmp_path / "x.plan") as engine:
        got = engine.sample(2, steps=5, latents=unit, output="float", labels=labels)
        assert engine.info()["self_test"]["status"] == "passed"
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


class Bomb:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("/tmp/ddpm_rt_must_not_exist"),)


@pytest.mark.parametrize(
    "where", ["os.system", "builtins.eval", "builtins.getattr", "torch.load", "pathlib.Path.touch", "subprocess.Popen"]
)
def test_nothing_in_a_file_is_executed(where, tmp_path):
    module, _, name = where.rpartition(".")
    module, name = ("pathlib", "Path.touch") if where.startswith("pathlib") else (module, name)
    code = (
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(name)])
        + name.encode()
        + b"\x93"
    )
    (tmp_path / "x.pkl").write_bytes(code + b"\x8c\x04true\x85R.")
    with pytest.raises(ddpm_rt.PlanError, match="nothing in a file is executed"):
        ddpm_rt.export.export_model(tmp_path / "x.pkl", tmp_path / "x.plan")


def test_storages_inside_are_read_by_weights_only_too(tmp_path):
    import io

    inner = io.BytesIO()
    torch.save({"a": Bomb()}, inner, _use_new_zipfile_serialization=False)

    class Load:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"ema": Load()}))
    with pytest.raises(ddpm_rt.PlanError, match="nothing in a file is executed"):
        ddpm_rt.export.export_model(tmp_path / "x.pkl", tmp_path / "x.plan")
    assert not pathlib.Path("/tmp/ddpm_rt_must_not_exist").exists()


def test_source_code_in_a_file_is_thrown_away(saved):
    net, arguments = network(SongUNet)
    found = edm_pickle.load(saved("EDMPrecond", net, arguments, {"img_resolution": 8, "img_channels": 3}))
    assert found["ema"].kind == "EDMPrecond" and "os.abort" not in repr(vars(found["ema"]))
    names = {f"model.{k}" for k in net.state_dict()}
    assert set(found["ema"].tensors()) == names


def test_what_is_wrong_is_named(saved, tmp_path):
    net, arguments = network(SongUNet)
    size = {"img_resolution": 8, "img_channels": 3}

    def refused(error, match, path, **options):
        with pytest.raises(error, match=match):
            edm.read(path, **options)

    refused(ddpm_rt.PlanError, "iDDPMPrecond, got 'Precond'", saved("Precond", net, arguments, size))
    refused(ddpm_rt.PlanError, "img_channels", saved("EDMPrecond", net, arguments, {"img_resolution": 8}))
    refused(ddpm_rt.PlanError, "arguments of a SongUNet", saved("EDMPrecond", net, arguments | {"colour": 1}, size))
    refused(ddpm_rt.PlanError, r"affine\.bias", saved("EDMPrecond", net, arguments | {"model_channels": 64}, size))
    refused(ddpm_rt.PlanError, "u: expected the table", saved("iDDPMPrecond", net, arguments, size))
    refused(ddpm_rt.OptionError, "weights_of", saved("EDMPrecond", net, arguments, size), weights_of="net")
    for i, content in enumerate((b"", b"\x80\x04.", pickle.dumps({"a": 1}), pickle.dumps([1]), b"garbage")):
        (tmp_path / f"{i}.pkl").write_bytes(content)
        refused(ddpm_rt.PlanError, f"{i}.pkl", tmp_path / f"{i}.pkl")
    whole = saved("EDMPrecond", net, arguments, size).read_bytes()
    (tmp_path / "half.pkl").write_bytes(whole[: len(whole) // 2])
    refused(ddpm_rt.PlanError, "half.pkl", tmp_path / "half.pkl")
