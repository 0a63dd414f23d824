"""ddpm_rt/importers/denoising_diffusion_pytorch.py: files as that project's Trainer writes them, sampled as its own loops do."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import loops
import numpy as np
import pytest

import ddpm_rt
import ddpm_rt.export

torch = pytest.importorskip("torch")


def _import():
    """Its trainer, which is not used here, reads image folders with torchvision; where that cannot be imported (a build for
    another torch), empty modules of its name let the rest be imported."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        parts = {}
        for name in ("torchvision", "torchvision.transforms", "torchvision.utils", "torchvision.models"):
            parts[name] = types.ModuleType(name)
            parts[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        top = parts["torchvision"]
        top.transforms, top.utils, top.models = (parts[f"torchvision.{n}"] for n in ("transforms", "utils", "models"))
        sys.modules.update(parts)
        try:
            return pytest.importorskip("denoising_diffusion_pytorch")
        finally:
            for name in parts:
                sys.modules.pop(name, None)
    return pytest.importorskip("denoising_diffusion_pytorch")


ddp = _import()
ema_pytorch = pytest.importorskip("ema_pytorch")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SEED = 3


def diffusion(net=None, cls=None, **options):
    torch.manual_seed(0)
    unet = ddp.Unet(dim=8, dim_mults=(1, 2), attn_dim_head=4, attn_heads=2, **(net or {}))
    model = (cls or ddp.GaussianDiffusion)(unet, image_size=8, timesteps=50, **options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def saved(path, model, averaged=None):
    """As Trainer.save writes it."""
    ema = ema_pytorch.EMA(averaged or model, beta=0.995, update_every=10)
    optimizer = torch.optim.Adam(model.parameters())
    torch.save({"step": 7, "model": model.state_dict(), "opt": optimizer.state_dict(), "ema": ema.state_dict(),
                "scaler": None, "version": ddp.version if isinstance(getattr(ddp, "version", ""), str) else "2"}, path)  # fmt: skip
    return path


def theirs(model, monkeypatch, unit):
    """Its own sample(), from `unit` and with the engine's noise in its steps."""
    row, noise = [-1], loops.engine_noise(SEED, unit.shape)

    def drawn(x):
        row[0] += 1
        return torch.from_numpy(noise(row[0]))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *a, **k: torch.from_numpy(unit))
        patch.setattr(torch, "randn_like", drawn)
        return model.sample(batch_size=len(unit)).numpy()


def compared(model, path, monkeypatch, scale=(1.0, 1.0), **options):
    unit = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = theirs(model, monkeypatch, unit)
    result = ddpm_rt.export.export_model(path, path.with_suffix(".plan"), image_size=8, **options)
    with ddpm_rt.Engine(path.with_suffix(".plan")) as engine:
        got = engine.sample(2, latents=unit, seed=SEED, output="float")
    got = (got + 1) / 2 if scale == (1.0, 1.0) else got
    assert np.abs(got - expected).max() <= 2e-4
    return result


CASES = {
    "pred_noise": ({}, {"objective": "pred_noise", "beta_schedule": "linear"}),
    "pred_x0, every attention full": ({"full_attn": (True, True)},
                                                      {"objective": "pred_x0", "beta_schedule": "cosine"}),
    "pred_v, clipped loss weights": ({"init_dim": 12}, {"objective": "pred_v", "min_snr_loss_weight": True}),
}  # fmt: skip


@pytest.mark.parametrize(("net", "options"), CASES.values(), ids=CASES)
def test_a_trainer_s_file_samples_as_its_own_loop(net, options, tmp_path, monkeypatch):
    model = diffusion(net, **options)
    other = diffusion(net, **options)
    for p in other.parameters():
        torch.nn.init.zeros_(p)
    result = compared(model, saved(tmp_path / "model-1.pt", other, averaged=model), monkeypatch)
    manifest = result["manifest"]
    assert manifest["prediction"] == {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[options["objective"]]
    assert manifest["defaults"]["sampler"] == "ddpm" and "step 7" in manifest["card"]


def test_its_ddim_sampling(tmp_path, monkeypatch):
    model = diffusion(sampling_timesteps=7, objective="pred_noise")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    compared(model, tmp_path / "bare.pt", monkeypatch, sampling_steps=7)


def test_learned_variance(tmp_path, monkeypatch):
    model = diffusion({"learned_variance": True}, cls=lambda net, **o: ddp.LearnedGaussianDiffusion(net, 0.001, **o),
                      objective="pred_noise")  # fmt: skip
    result = compared(model, saved(tmp_path / "model-1.pt", model), monkeypatch)
    assert result["manifest"]["variance"] == "learned_range"


def test_the_other_weights_and_data_that_was_not_normalised(tmp_path, monkeypatch):
    model = diffusion(auto_normalize=False)
    file = saved(tmp_path / "model-1.pt", model, averaged=diffusion())
    result = compared(model, file, monkeypatch, scale=None, data_range=(0, 1), weights_of="model")
    assert result["manifest"]["sample"]["range"] == [0, 1]


def test_what_is_wrong_is_named(tmp_path):
    file = saved(tmp_path / "model-1.pt", diffusion())
    plan = tmp_path / "x.plan"

    def refused(error, match, source=file, **options):
        with pytest.raises(error, match=match):
            ddpm_rt.export.export_model(source, plan, **options)
        assert not plan.exists()

    refused(ddpm_rt.OptionError, "image_size")
    refused(ddpm_rt.OptionError, "objective", image_size=8, objective="pred_u")
    refused(ddpm_rt.OptionError, "sampling_steps", image_size=8, sampling_steps=51)
    refused(ddpm_rt.OptionError, "weights_of", image_size=8, weights_of="best")
    refused(ddpm_rt.OptionError, "preset", preset="64")
    content = torch.load(file, weights_only=True)
    del content["ema"]["ema_model.model.mid_block1.block1.proj.weight"]
    torch.save(content, tmp_path / "less.pt")
    refused(ddpm_rt.PlanError, "mid_block1.block1.proj.weight", tmp_path / "less.pt", image_size=8)
    torch.save(diffusion({"self_condition": True}).state_dict(), tmp_path / "self.pt")
    refused(ddpm_rt.PlanError, "self_condition", tmp_path / "self.pt", image_size=8)
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    refused(ddpm_rt.PlanError, "betas", tmp_path / "other.pt", image_size=8)
    (tmp_path / "rubbish.pt").write_bytes(b"rubbish")
    refused(ddpm_rt.PlanError, "rubbish.pt", tmp_path / "rubbish.pt", image_size=8)


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/ddpm_rt_must_not_exist", "w"))


def test_nothing_in_a_file_is_executed(tmp_path):
    import pathlib

    torch.save({"model": {"a": torch.zeros(1)}, "step": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ddpm_rt.PlanError, match="nothing in a file is executed"):
        ddpm_rt.export.export_model(tmp_path / "bomb.pt", tmp_path / "x.plan")
    assert not pathlib.Path("/tmp/ddpm_rt_must_not_exist").exists()
