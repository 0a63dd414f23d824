"""Line 9: the kernels by themselves, in a loop of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt import kernels

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_loop.py"


def test_the_example_is_at_most_20_lines_and_reproduces_the_engine_bit_for_bit():
    assert len(EXAMPLE.read_text().splitlines()) <= 20
    code = (
        "import numpy as np, ddpm_rt, own_loop\n"
        "def eps(x, t, labels): return 0.3 * x + 0.01 * labels.reshape(-1, 1, 1, 1).astype('f4')\n"
        "labels = np.array([0, 2, 1])\n"
        "for sampler, steps in (('ddim', 25), ('ddpm', 40)):\n"
        "    x = own_loop.sample(eps, (3, 8, 8), labels, 4, sampler=sampler, steps=steps, scale=2.5, seed=9)\n"
        "    with ddpm_rt.Engine.from_callable(eps, (3, 8, 8), num_classes=4) as e:\n"
        "        y = e.sample(3, labels=labels, sampler=sampler, steps=steps, scale=2.5, seed=9, output='float')\n"
        "    print((x == y).all(), np.isfinite(x).all())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4


def test_numpy_and_dlpack_in_place_and_into_out():
    torch = pytest.importorskip("torch")
    rows = ddpm_rt.rows("ddpm", 10)
    x, c, u = (ddpm_rt.noise(0, i, (2, 3, 4)) for i in range(3))
    expected = kernels.step(x.copy(), c, rows, eps_uncond=u, scale=2.0, seeds=[1, 2])
    out = np.zeros_like(x)
    assert kernels.step(x, c, rows, eps_uncond=u, scale=2.0, seeds=[1, 2], out=out) is out and (out == expected).all()
    tensor = torch.from_numpy(x.copy())
    kernels.step(tensor, torch.from_numpy(c), rows, eps_uncond=torch.from_numpy(u), scale=2.0, seeds=[1, 2])
    assert (tensor.numpy() == expected).all()
    combined = kernels.cfg_combine(torch.from_numpy(c), torch.from_numpy(u), 3.0, rescale=0.5)
    assert (
        isinstance(combined, torch.Tensor) and (combined.numpy() == kernels.cfg_combine(c, u, 3.0, rescale=0.5)).all()
    )
    assert np.abs(kernels.cfg_combine(c, u, 3.0) - (u + 3 * (c - u))).max() < 1e-6


def test_bad_arrays_are_typed_errors():
    rows = ddpm_rt.rows("ddpm", 10)
    with pytest.raises(ddpm_rt.ShapeError, match="float64"):
        kernels.step(np.zeros((1, 4)), np.zeros((1, 4), np.float32), rows, seeds=0)
    with pytest.raises(ddpm_rt.OptionError, match="index"):
        kernels.step(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32), rows, seeds=0, index=10)
