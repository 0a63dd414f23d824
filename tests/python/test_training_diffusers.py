"""ddpm_rt/training/diffusers_folder.py: diffusers loads the folder and computes, and samples, the same."""

import json

import pytest
import torch

from ddpm_rt.errors import OptionError
from ddpm_rt.reference import samplers
from ddpm_rt.reference.schedule import timesteps
from ddpm_rt.reference.unet import CIFAR10_DDPM, UNet, UNetConfig
from ddpm_rt.training.config import TrainConfig
from ddpm_rt.training.diffusers_folder import save_diffusers, unet_config

CASES = {
    "film, classes, attention at the lowest level": {"film": True, "num_classes": 4, "heads": 2, "attention": (1,)},
    "added embedding, one head at two widths": {"film": False, "attention": (0, 1), "heads": 1},
    "three levels, no attention but the middle": {"channel_mult": (1, 1, 2), "attention": (), "heads": 4, "film": True},
    "learned variance": {"learned_variance": True, "num_classes": 2, "attention": (1,), "film": False},
}


def network(**changes):
    base = {
        "image_size": (16, 8),
        "in_channels": 2,
        "channels": 16,
        "channel_mult": (1, 2),
        "res_blocks": 2,
        "groups": 4,
    }
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = UNet(UNetConfig(**base | changes)).eval()
    for p in model.parameters():  # the branches that start at zero too
        torch.nn.init.normal_(p, std=0.05 if p.ndim > 1 else 0.3)
    return model


def train_config(model, **changes):
    import dataclasses

    loss = "hybrid" if model.cfg.learned_variance else "simple"
    return TrainConfig(model=dataclasses.asdict(model.cfg), loss=loss, **changes)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@torch.no_grad()
def test_same_outputs(case, tmp_path):
    from diffusers import UNet2DModel

    model = network(**case)
    save_diffusers(model, train_config(model), tmp_path)
    theirs, info = UNet2DModel.from_pretrained(tmp_path, subfolder="unet", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    x, t = torch.randn(3, 2, 16, 8), torch.tensor([0, 37, 999])
    label = None if model.label is None else torch.tensor([0, 1, model.cfg.num_classes])
    expected = model(x, t, label)
    assert (theirs.eval()(x, t, class_labels=label).sample - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "schedule", [{"name": "linear", "T": 1000}, {"name": "cosine", "T": 200}, {"name": "sigmoid", "T": 100}]
)
@torch.no_grad()
def test_same_samples(schedule, tmp_path):
    """diffusers' own DDIM loop on what it loaded, against the reference loop on ours."""
    from diffusers import DDIMScheduler, UNet2DModel

    model = network(num_classes=4, attention=(1,))
    cfg = train_config(model, schedule=schedule)
    save_diffusers(model, cfg, tmp_path)
    theirs = UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    scheduler = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert len(scheduler.alphas_cumprod) == schedule["T"]
    scheduler.set_timesteps(10)
    x = start = torch.randn(2, 2, 16, 8)
    label = torch.tensor([1, 4])
    for t in scheduler.timesteps:
        x = scheduler.step(theirs(x, t, class_labels=label).sample, t, x).prev_sample
    times = timesteps("leading", schedule["T"], 10)
    ours = samplers.ddim(lambda x, t: model(x, t, label), cfg.make_schedule(), start, times, clip="keep_eps")
    assert (x - ours).abs().max() <= 1e-4


def test_pipeline_loads(tmp_path):
    from diffusers import DDPMPipeline

    model = network(attention=(1,), in_channels=3, image_size=(8, 8))
    save_diffusers(model, train_config(model), tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 3)


def test_cifar10_ddpm_is_representable():
    config = unet_config(CIFAR10_DDPM)
    assert config["block_out_channels"] == [128, 256, 256, 256] and config["resnet_time_scale_shift"] == "default"


@pytest.mark.parametrize(
    "field, changes",
    [
        ("patch", {"patch": 2, "image_size": (16, 16)}),
        ("channel_mult", {"channel_mult": (2, 2), "attention": ()}),
        ("heads", {"attention": (0, 1), "heads": 2}),
    ],
)
def test_what_diffusers_has_not_is_named_and_nothing_is_written(field, changes, tmp_path):
    model = network(**changes)
    with pytest.raises(OptionError, match=f"^{field}"):
        save_diffusers(model, train_config(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_are_json_without_a_diffusers_install(tmp_path):
    model = network(attention=(1,))
    save_diffusers(model, train_config(model), tmp_path)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
