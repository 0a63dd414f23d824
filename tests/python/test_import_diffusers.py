"""ddpm_rt/importers/diffusers_folder.py: folders written by diffusers itself with random weights, sampled as its pipelines do."""

from __future__ import annotations

import importlib
import json
import shutil

import loops
import numpy as np
import pytest

import ddpm_rt
import ddpm_rt.export

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SEED = 5
SMALL = {
    "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 8,
}  # fmt: skip


def scaled(net):
    """Weights at which every branch counts."""
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.08 if p.ndim > 1 else 0.3)
    return net.eval()


def unet(**changes):
    return scaled(diffusers.UNet2DModel(**SMALL | changes))


def their_noise(monkeypatch, scheduler, unit):
    """The pipeline starts from `unit`; the scheduler's own noise is the engine's, row by row."""
    row, noise = [0], loops.engine_noise(SEED, unit.shape)

    def drawn(shape, **_):
        row[0] += 1
        return torch.from_numpy(noise(row[0] - 1))

    monkeypatch.setattr(importlib.import_module(type(scheduler).__module__), "randn_tensor", drawn)
    for name in ("ddpm", "ddim", "dit"):
        module = importlib.import_module(f"diffusers.pipelines.{name}.pipeline_{name}")
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(unit))


def unit_of(shape, n=2):
    return np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32)


def their_images(pipeline, monkeypatch, unit, **call):
    pipeline.set_progress_bar_config(disable=True)
    their_noise(monkeypatch, pipeline.scheduler, unit)
    images = pipeline(batch_size=len(unit), output_type="pt", **call).images
    return images.numpy()


def compared(folder, plan, pipeline, monkeypatch, n, shape=(3, 8, 8), **options):
    unit = unit_of(shape)
    expected = their_images(pipeline, monkeypatch, unit, num_inference_steps=n)
    result = ddpm_rt.export.export_model(folder, plan, **options)
    with ddpm_rt.Engine(plan) as engine:
        got = engine.sample(len(unit), steps=n, latents=unit, seed=SEED, output="float")
        assert engine.info()["self_test"]["status"] == "passed"
    assert np.abs(np.clip(got / 2 + 0.5, 0, 1) - expected).max() <= 2e-4
    return result


NETWORKS = {
    "film, resnet sampling, one head": {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet",
                                        "upsample_type": "resnet", "attention_head_dim": None},
    "freq shift, sine first, gelu, centred, scaled middle, no attention": {
                                             "freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-6, "act_fn": "gelu",
                                             "center_input_sample": True, "mid_block_scale_factor": 1.4, "add_attention": False,
                                             "down_block_types": ("DownBlock2D", "DownBlock2D"),
                                             "up_block_types": ("UpBlock2D", "UpBlock2D")},
    "learned times, downsample padding 0": {"time_embedding_type": "learned", "num_train_timesteps": 1000,
                                            "downsample_padding": 0, "attn_norm_num_groups": 2},
}  # fmt: skip


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_a_ddpm_pipeline(changes, tmp_path, monkeypatch):
    pipeline = diffusers.DDPMPipeline(unet(**changes), diffusers.DDPMScheduler(beta_end=0.015))
    pipeline.save_pretrained(tmp_path / "p")
    result = compared(tmp_path / "p", tmp_path / "p.plan", pipeline, monkeypatch, 6)
    assert result["manifest"]["defaults"]["compat"] == "diffusers"


def test_a_ddim_pipeline_samples_with_ddim_whatever_its_folder_names(tmp_path, monkeypatch):
    net = unet()
    diffusers.DDIMPipeline(net, diffusers.DDIMScheduler()).save_pretrained(tmp_path / "p")
    diffusers.DDPMScheduler(clip_sample_range=0.8).save_pretrained(tmp_path / "p" / "scheduler")
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "p")
    compared(tmp_path / "p", tmp_path / "p.plan", pipeline, monkeypatch, 6)


def test_the_flat_layout_with_old_attention_names_in_a_bin_file(tmp_path, monkeypatch):
    net = unet()
    pipeline = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler())
    net.save_pretrained(tmp_path, safe_serialization=False)
    pipeline.scheduler.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in list(state):
        for new, was in old.items():
            if f".{new}." in name and "attentions" in name:
                state[name.replace(f".{new}.", f".{was}.")] = state.pop(name)
    assert any(".proj_attn." in name for name in state)
    torch.save(state, file)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attn_norm_num_groups"]  # early folders lack many keys
    (tmp_path / "config.json").write_text(json.dumps(config))
    compared(tmp_path, tmp_path / "p.plan", pipeline, monkeypatch, 5)


def test_averaged_weights_are_preferred_and_a_network_can_be_named(tmp_path, monkeypatch):
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "p")
    other = unet(layers_per_block=2)
    other.save_pretrained(tmp_path / "p" / "unet_ema")
    compared(tmp_path / "p", tmp_path / "a.plan", diffusers.DDPMPipeline(other, pipeline.scheduler), monkeypatch, 4)
    compared(tmp_path / "p", tmp_path / "b.plan", pipeline, monkeypatch, 4, network="unet")
    shutil.rmtree(tmp_path / "p" / "unet_ema")
    pipeline.unet.half().save_pretrained(tmp_path / "h" / "unet", variant="fp16")
    pipeline.scheduler.save_pretrained(tmp_path / "h" / "scheduler")
    half = diffusers.DDPMPipeline(pipeline.unet.float(), pipeline.scheduler)
    compared(tmp_path / "h", tmp_path / "c.plan", half, monkeypatch, 4)


def test_learned_range(tmp_path, monkeypatch):
    pipeline = diffusers.DDPMPipeline(unet(out_channels=6), diffusers.DDPMScheduler(variance_type="learned_range"))
    pipeline.save_pretrained(tmp_path / "p")
    result = compared(tmp_path / "p", tmp_path / "p.plan", pipeline, monkeypatch, 6)
    assert result["manifest"]["variance"] == "learned_range"


def test_another_scheduler_may_be_given(tmp_path, monkeypatch):
    net = unet()
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "p")
    other = diffusers.UniPCMultistepScheduler(final_sigmas_type="sigma_min")
    unit, n = unit_of((3, 8, 8)), 6
    other.set_timesteps(n)
    x = torch.from_numpy(unit)
    with torch.no_grad():
        for t in other.timesteps:
            x = other.step(net(x, t).sample, t, x).prev_sample
    other.save_pretrained(tmp_path / "s")
    ddpm_rt.export.export_model(tmp_path / "p", tmp_path / "p.plan", scheduler=tmp_path / "s" / "scheduler_config.json")
    with ddpm_rt.Engine(tmp_path / "p.plan") as engine:
        got = engine.sample(2, steps=n, latents=unit, output="float")
    assert np.abs(got - x.numpy()).max() <= 2e-4 * max(1, np.abs(x.numpy()).max())


def test_classes_with_the_last_one_as_null_and_with_a_zero_embedding(tmp_path):
    net = unet(num_class_embeds=4)
    own = diffusers.DDIMScheduler(clip_sample=False)
    net.save_pretrained(tmp_path / "p" / "unet")
    own.save_pretrained(tmp_path / "p" / "scheduler")
    unit, labels, n = unit_of((3, 8, 8)), torch.tensor([0, 2]), 5

    def loop(guided):
        own.set_timesteps(n)
        x = torch.from_numpy(unit)
        with torch.no_grad():
            for t in own.timesteps:
                e = net(x, t, class_labels=labels).sample
                if guided:
                    u = net(x, t, class_labels=torch.tensor([3, 3])).sample
                    e = u + 2.5 * (e - u)
                x = own.step(e, t, x).prev_sample
        return x.numpy()

    zero = ddpm_rt.export.export_model(tmp_path / "p", tmp_path / "z.plan")["manifest"]
    last = ddpm_rt.export.export_model(tmp_path / "p", tmp_path / "l.plan", null_label="last")["manifest"]
    assert zero["conditions"]["label"]["classes"] == 4 and last["conditions"]["label"]["classes"] == 3
    assert zero["defaults"]["scale"] == last["defaults"]["scale"] == 1
    for plan, scale, expected in (("z", None, loop(False)), ("l", 2.5, loop(True))):
        with ddpm_rt.Engine(tmp_path / f"{plan}.plan") as engine:
            got = engine.sample(2, labels=[0, 2], scale=scale, steps=n, latents=unit, output="float")
        assert np.abs(got - expected).max() <= 2e-4 * max(1, np.abs(expected).max())


def test_a_fourier_network_is_told_sigma_and_divides_by_it(tmp_path, monkeypatch):
    """NCSN++: ScoreSdeVePipeline's loop, for one image, as its corrector averages over the batch."""
    net = unet(
        time_embedding_type="fourier", freq_shift=0, down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"), block_out_channels=(32, 32), mid_block_scale_factor=1.41421356,
        flip_sin_to_cos=False,
    )  # fmt: skip
    own = diffusers.ScoreSdeVeScheduler(sigma_max=20.0)
    net.save_pretrained(tmp_path / "p" / "unet")
    own.save_pretrained(tmp_path / "p" / "scheduler")
    unit, n, row = unit_of((3, 8, 8), 1), 4, [0]
    noise = loops.engine_noise(SEED, unit.shape)
    monkeypatch.setattr(importlib.import_module(type(own).__module__), "randn_tensor",
                        lambda shape, **_: torch.from_numpy(noise(row[0])))  # fmt: skip
    own.set_timesteps(n)
    own.set_sigmas(n)
    x = torch.from_numpy(unit) * own.init_noise_sigma
    with torch.no_grad():
        for i, t in enumerate(own.timesteps):
            sigma = own.sigmas[i] * torch.ones(1)
            x = own.step_correct(net(x, sigma).sample, x).prev_sample
            row[0] += 1
            out = own.step_pred(net(x, sigma).sample, t, x)
            row[0] += 1
            x = out.prev_sample
    expected = out.prev_sample_mean.numpy()
    ddpm_rt.export.export_model(tmp_path / "p", tmp_path / "p.plan")
    with ddpm_rt.Engine(tmp_path / "p.plan") as engine:
        got = engine.sample(1, steps=n, latents=unit, seed=SEED, output="float")
    assert np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()


def test_a_dit_with_class_labels(tmp_path, monkeypatch):
    net = scaled(diffusers.DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
                                                 num_layers=2, sample_size=8, num_embeds_ada_norm=1000, norm_num_groups=4))  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    names = {str(i): f"thing {i}" for i in range(1000)}  # as facebook/DiT-XL-2-256 has them
    pipeline = diffusers.DiTPipeline(net, vae, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "p")
    _edit(tmp_path / "p" / "model_index.json", id2label=names)
    unit, n, labels = unit_of((4, 8, 8)), 4, [1, 3]
    their_noise(monkeypatch, pipeline.scheduler, unit)
    seen = []
    monkeypatch.setattr(pipeline.vae, "decode", lambda z: seen.append(z) or vae.__class__.decode(vae, z))
    pipeline(labels, guidance_scale=3.0, num_inference_steps=n, output_type="pt")
    expected = seen[0].numpy() * vae.config.scaling_factor
    result = ddpm_rt.export.export_model(tmp_path / "p", tmp_path / "p.plan")
    manifest = result["manifest"]
    assert manifest["sample"]["role"] == "latent" and manifest["class_names"] == list(names.values())
    with ddpm_rt.Engine(tmp_path / "p.plan") as engine:
        got = engine.sample(2, labels=["thing 1", 3], scale=3.0, steps=n, latents=unit)
    assert np.abs(got - expected).max() <= 2e-4 * max(1, np.abs(expected).max())


def _edit(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (content | changes).items() if v != "gone"}))


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("frobnicate", lambda f: _edit(f / "unet" / "config.json", frobnicate=1)),
        ("_class_name", lambda f: _edit(f / "unet" / "config.json", _class_name="Kandinsky3UNet")),
        ("sample_size", lambda f: _edit(f / "unet" / "config.json", sample_size=None)),
        ("class_embed_type", lambda f: _edit(f / "unet" / "config.json", class_embed_type="identity")),
        ("scheduler.use_beta_sigmas", lambda f: _edit(f / "scheduler" / "scheduler_config.json",
                                                      _class_name="LMSDiscreteScheduler", use_beta_sigmas=True)),
        ("scheduler_config.json", lambda f: shutil.rmtree(f / "scheduler")),
        ("config.json", lambda f: shutil.rmtree(f / "unet")),
        ("weights", lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink()),
        ("weights", lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"rubbish")),
        ("JSON", lambda f: (f / "unet" / "config.json").write_text("{")),
        ("", lambda f: _edit(f / "unet" / "config.json", block_out_channels=[16, 16])),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_named_and_nothing_is_written(what, spoil, tmp_path):
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "p")
    spoil(tmp_path / "p")
    with pytest.raises((ddpm_rt.PlanError, ddpm_rt.OptionError), match=what):
        ddpm_rt.export.export_model(tmp_path / "p", tmp_path / "p.plan")
    assert not (tmp_path / "p.plan").exists()


def test_options_of_another_source_are_refused(tmp_path):
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "p")
    for options in ({"preset": "64"}, {"null_label": "last"}, {"null_label": "first"}):
        with pytest.raises(ddpm_rt.OptionError, match=next(iter(options))):
            ddpm_rt.export.export_model(tmp_path / "p", tmp_path / "p.plan", **options)
