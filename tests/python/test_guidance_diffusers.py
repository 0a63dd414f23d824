"""Thresholding and rescale against diffusers' own code."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt import kernels

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

SHAPE = (3, 4, 4)


def network(x, t):
    return (1.4 * np.sin(1.1 * x) + 0.0003 * t).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("DDIMScheduler", "ddim"), ("DPMSolverMultistepScheduler", "dpmpp_2m"), ("UniPCMultistepScheduler", "unipc")],
)
@pytest.mark.parametrize("cap", [0.7, 1.0, 1.8])
def test_dynamic_thresholding(name, sampler, cap):
    """sample_max_value below 1 too: diffusers then divides by it."""
    scheduler = getattr(diffusers, name)(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=cap)
    schedule = {"alpha_bar": scheduler.alphas_cumprod.double().numpy()}
    unit = np.stack([ddpm_rt.noise(5 + i, 0, SHAPE) for i in range(3)])
    scheduler.set_timesteps(12)
    x = torch.from_numpy(unit)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(network(x.numpy(), float(t))), t, x).prev_sample
    with ddpm_rt.Engine.from_callable(lambda x, t, labels: network(x, t[0]), SHAPE, schedule, role="vector") as engine:
        got = engine.sample(3, seed=5, sampler=sampler, steps=12, compat="diffusers", threshold=(0.9, cap))
    assert np.abs(got - x.numpy()).max() <= 2e-4


def test_rescale():
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    rng = np.random.default_rng(0)
    cond, uncond = (rng.standard_normal((5, *SHAPE), dtype=np.float32) for _ in range(2))
    guided = torch.from_numpy(uncond + np.float32(7.5) * (cond - uncond))
    expected = rescale_noise_cfg(guided, torch.from_numpy(cond), 0.7).numpy()
    assert np.abs(kernels.cfg_combine(cond, uncond, 7.5, rescale=0.7) - expected).max() < 1e-5
    rows, x = kernels.rows("ddim", 1, clip="none", guidance_rescale=0.7), np.zeros((5, *SHAPE), np.float32)
    kernels.step(x, cond, rows, eps_uncond=uncond, scale=7.5, seeds=0)
    assert np.abs(x / rows[0]["q"] - expected).max() < 1e-4
