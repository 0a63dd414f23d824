"""Line 8: models of other projects become plans by one command and sample as those projects do."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import ddpm_rt
import ddpm_rt.export

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")
UNIT = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddpm_rt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


def unet():
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1 if p.ndim > 1 else 0.3)
    return net.eval()


def theirs(net, scheduler, n):
    scheduler.set_timesteps(n)
    x = torch.from_numpy(UNIT) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x.numpy()


def test_a_diffusers_folder_by_one_command(tmp_path):
    net = unet()
    own = diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1, solver_order=3)
    net.save_pretrained(tmp_path / "model" / "unet")
    own.save_pretrained(tmp_path / "model" / "scheduler")
    found = cli("export", tmp_path / "model", "-o", tmp_path / "x.plan", "--steps", 9)
    assert found.returncode == 0, found.stderr
    shown = cli("inspect", tmp_path / "x.plan").stdout
    assert "compat diffusers" in shown and "sampler dpmpp_3m" in shown
    expected = theirs(net, own, 9)
    with ddpm_rt.Engine(tmp_path / "x.plan") as engine, pytest.warns(UserWarning, match="half of the parabola"):
        got = engine.sample(2, latents=UNIT, output="float")
    assert np.abs(got - expected).max() <= 2e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize(
    "own",
    [
        diffusers.DDIMScheduler(thresholding=True, sample_max_value=0.6, prediction_type="v_prediction"),
        diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1),
        diffusers.UniPCMultistepScheduler(solver_order=3, rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_scheduler_s_config_reproduces_it(own):
    net = unet()

    def fn(x, t, labels):
        with torch.no_grad():
            return net(torch.from_numpy(np.array(x)), torch.from_numpy(np.array(t))).sample.numpy()

    with ddpm_rt.Engine.from_callable(fn, (3, 8, 8), scheduler=json.loads(own.to_json_string())) as engine:
        got = engine.sample(2, steps=8, latents=UNIT, output="float")
    expected = theirs(net, own, 8)
    assert np.abs(got - expected).max() <= 2e-4 * max(1, np.abs(expected).max())


def test_an_unsupported_key_is_an_error_that_names_it(tmp_path):
    unet().save_pretrained(tmp_path / "model")
    diffusers.LMSDiscreteScheduler().save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_beta_sigmas": True}))
    found = cli("export", tmp_path / "model", "-o", tmp_path / "x.plan")
    assert found.returncode == 1 and "scheduler.use_beta_sigmas: expected" in found.stderr
    assert not (tmp_path / "x.plan").exists() and "Traceback" not in found.stderr


@pytest.mark.slow
def test_guided_diffusion_by_its_flags(tmp_path):
    from ddpm_rt.importers.guided_unet import GuidedUNet, UNetShape

    torch.manual_seed(0)
    net = GuidedUNet(UNetShape(16, 3, 6, 32, (32, 64), 1, (1,), (1, 1), 32, True, True, True))
    torch.save(net.state_dict(), tmp_path / "model.pt")
    bare = cli("export", tmp_path / "model.pt", "-o", tmp_path / "x.plan")
    assert bare.returncode == 1 and "flags.image_size" in bare.stderr and "256x256_diffusion" in bare.stderr
    flags = {"image_size": 16, "num_head_channels": 32, "use_new_attention_order": True, "noise_schedule": "cosine",
             "diffusion_steps": 1000, "timestep_respacing": "8"}  # fmt: skip
    found = cli("export", tmp_path / "model.pt", "-o", tmp_path / "x.plan", "--flags", json.dumps(flags))
    assert found.returncode == 0, found.stderr
    manifest = json.loads(cli("inspect", tmp_path / "x.plan", "--json").stdout)["manifest"]
    assert manifest["variance"] == "learned_range" and manifest["sample"]["uint8"] == "truncate"
    with ddpm_rt.Engine(tmp_path / "x.plan") as engine:
        assert engine.sample(1, seed=0).nfe == 8


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    found = cli("export", tmp_path / "model.pkl", "-o", tmp_path / "x.plan")
    assert found.returncode == 1 and "os.system" in found.stderr and "nothing in a file is executed" in found.stderr
