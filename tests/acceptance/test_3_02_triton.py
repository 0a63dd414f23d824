"""GPU issue, line 2: the Triton twins, from plain PyTorch; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

import ddpm_rt
from ddpm_rt import kernels

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
T = kernels.triton


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 12), ("ddpm", 15)])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_loop_in_pytorch_over_the_triton_step_is_the_engine_bit_for_bit(sampler, steps, form):
    """The network is a fixed function in numpy, so that both sides see the same eps."""

    def eps(x, t, labels):
        return (0.3 * x + 0.01 * labels.reshape(-1, 1, 1, 1)).astype(np.float32)

    labels = np.array([0, 2, 1])
    with ddpm_rt.Engine.from_callable(eps, (3, 6, 6), num_classes=4) as engine:
        expected = engine.sample(3, labels=labels, sampler=sampler, steps=steps, scale=2.5, seed=9, output="float")

    table = T.Table(ddpm_rt.rows(sampler, steps), DEVICE)
    x = T.noise(9, 0, (3, 3, 6, 6), device=DEVICE).contiguous(memory_format=form)
    for i, row in enumerate(table.rows):
        now, t = x.contiguous().cpu().numpy(), np.full(3, row["t"])
        cond, uncond = (
            torch.from_numpy(eps(now, t, l)).to(DEVICE).contiguous(memory_format=form)
            for l in (labels, np.full_like(labels, 4))
        )
        assert T.step(x, cond, table, eps_uncond=uncond, scale=2.5, seeds=9, index=i) is x
    assert (x.contiguous().cpu().numpy() == expected).all() and np.isfinite(expected).all()


def test_normals_are_ddpm_rt_s():
    for size in (1, 5, 1023, 1025):
        got = T.noise([3, 2**64 - 1], 4, (2, size), 1, device=DEVICE).cpu().numpy()
        assert (got == np.stack([ddpm_rt.noise(seed, 4, (size,), 1) for seed in (3, 2**64 - 1)])).all()


def test_rows_seeds_and_scales_of_its_own_for_each_sample_and_no_bits_of_its_neighbours():
    table = T.Table(ddpm_rt.rows("ddpm", 10), DEVICE)
    x, c, u = (T.noise(0, i, (3, 5, 7), device=DEVICE) for i in range(3))
    index = torch.tensor([2, 9, 5], device=DEVICE)
    scale = torch.tensor([1.0, 3.0, 0.0], device=DEVICE)
    seeds = torch.tensor([7, -1, 12], device=DEVICE)
    together = T.step(x.clone(), c, table, eps_uncond=u, scale=scale, seeds=seeds, index=index)
    for i in range(3):
        one = slice(i, i + 1)
        options = {"scale": float(scale[i]), "seeds": [int(seeds[i]) % 2**64], "index": int(index[i])}
        alone = T.step(x[one].clone(), c[one].clone(), table, eps_uncond=u[one].clone(), **options)
        cpu = [a[one].cpu().numpy().copy() for a in (x, c, u)]
        kernels.step(cpu[0], cpu[1], table.rows, eps_uncond=cpu[2], **options)
        assert torch.equal(together[one], alone) and (alone.cpu().numpy() == cpu[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_guidance_and_groupnorm_silu_in_every_dtype(dtype):
    torch.manual_seed(0)
    c, u = (torch.randn(2, 3, 5, 5).to(dtype) for _ in range(2))
    wide = kernels.cfg_combine(c.float(), u.float(), 3.0)
    out = torch.empty(c.shape, device=DEVICE)
    assert torch.equal(T.cfg_combine(c.to(DEVICE), u.to(DEVICE), 3.0, out=out).cpu(), wide)

    x = (4 * torch.randn(2, 32, 9, 9) + 1).to(dtype).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 32)
    got = T.groupnorm_silu(x.to(DEVICE), 8, weight.to(DEVICE), bias.to(DEVICE))
    wanted = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 8, weight.double(), bias.double()))
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert ((got.cpu().double() - wanted).abs() <= tolerance * wanted.abs().clamp(min=1)).all()


def test_what_is_not_executed_is_an_error_that_names_it():
    x = torch.zeros(1, 4, device=DEVICE)
    for name, bit in (("THRESHOLD", 3), ("RESCALE", 4), ("NORM", 9), ("VLB", 10)):
        rows = ddpm_rt.rows("ddim", 10)
        rows["flags"][0] |= 1 << bit
        with pytest.raises(ddpm_rt.OptionError, match=name):
            T.step(x, x.clone(), rows, seeds=0)
    with pytest.raises(ddpm_rt.OptionError, match="rescale"):
        T.cfg_combine(x, x.clone(), 2.0, rescale=0.7)


def test_it_is_never_chosen_silently_and_costs_nothing_unused():
    code = (
        "import sys, torch, ddpm_rt\nx = torch.zeros(1, 4)\n"
        "ddpm_rt.kernels.step(x, x.clone(), ddpm_rt.rows('ddim', 10), seeds=0)\nassert 'triton' not in sys.modules\n"
        "try: ddpm_rt.kernels.triton.step(x, x.clone(), ddpm_rt.rows('ddim', 10), seeds=0)\n"
        "except ddpm_rt.DeviceError as e: print(e)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "CUDA device" in done.stdout
    light = "import sys, ddpm_rt; ddpm_rt.kernels.triton.step; print({'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", light], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_docstrings_give_shapes_dtypes_bytes_and_errors():
    for function in (T.step, T.cfg_combine, T.groupnorm_silu):
        for word in ("[n, ", "float16", "Bytes per element", "Raises:", "ShapeError"):
            assert word in function.__doc__, (function.__name__, word)
