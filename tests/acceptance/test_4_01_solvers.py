"""Line 1: sixteen solvers, listed, compiled, run; a table of one's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import ddpm_rt

NAMES = [
    "ddpm",
    "ddim",
    "pndm",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "unipc",
    "euler",
    "euler_ancestral",
    "heun",
    "lms",
    "deis",
    "lcm",
    "langevin",
    "pc",
]
MEAN, STD = 0.3, 0.5
AB = ddpm_rt.kernels.alpha_bar("linear")


def eps(x, t, labels):
    """Of data N(MEAN, STD^2), for fractional timesteps too."""
    rel = np.exp(np.interp(t, np.arange(1000.0), np.log(np.sqrt((1 - AB) / AB))))
    a = (1 / np.sqrt(1 + rel**2)).reshape(-1, *[1] * (x.ndim - 1))
    s = np.sqrt(1 - a**2)
    return (s * (x - a * MEAN) / (a**2 * STD**2 + s**2)).astype(np.float32)


def test_samplers_lists_them_with_options_order_and_citation():
    listed = ddpm_rt.samplers()
    assert [s.name for s in listed] == NAMES
    for s in listed:
        assert s.citation and s.default_grid and all(o.name and o.type and o.default and o.help for o in s.options)
    orders = {s.name: s.order for s in listed}
    assert (
        orders["ddim"] == orders["euler"] == 1 and orders["dpmpp_2m"] == orders["heun"] == 2 and orders["dpmpp_3m"] == 3
    )
    assert "order" in {o.name for o in next(s for s in listed if s.name == "unipc").options}


@pytest.mark.parametrize("sampler", [n for n in NAMES if n not in ("pc", "langevin", "lcm")])
def test_each_solver_brings_noise_to_the_data(sampler):
    """2,000 numbers of N(MEAN, STD^2): 5 standard errors, and what a few dozen steps of first order leave."""
    with ddpm_rt.Engine.from_callable(eps, (50,)) as engine:
        x = engine.sample(40, sampler=sampler, steps=100, clip="none", seed=0)
    assert abs(x.mean() - MEAN) < 5 * STD / 2000**0.5 and abs(x.std() - STD) < 0.06


def test_consistency_langevin_and_predictor_corrector_run():
    with ddpm_rt.Engine.from_callable(lambda x, t, labels: x / 0.09, (500,), {"name": "ve", "sigma_min": 0.01, "sigma_max": 1.0},
                                      "energy") as engine:  # fmt: skip
        options = {"sigmas": [0.5], "inner_steps": 1500, "step_lr": 0.004, "denoise": False}
        x = engine.sample(4, sampler="langevin", clip="none", seed=0, sampler_options=options)
        assert abs(x.var() / 0.09 - 1) < 0.12  # the stationary variance of the energy x^2 / (2 0.09); 2,000 numbers
        mean, std = 0.5, 0.3  # predictor-corrector on the score of a Gaussian; its steps follow the norm of each sample's score
    with ddpm_rt.Engine.from_callable(
        lambda x, t, labels: (mean - x) / (std**2 + t.reshape(-1, 1) ** 2), (500,), {"name": "ve", "sigma_min": 0.01, "sigma_max": 20.0},
        "score",
    ) as engine:  # fmt: skip
        x = np.asarray(engine.sample(4, sampler="pc", steps=300, seed=0))
        assert abs(x.mean() - mean) < 0.05 and abs(x.std() - std) < 0.06
        alone = np.asarray(engine.sample(1, sampler="pc", steps=300, seed=2))
        assert (alone[0] == x[2]).all()
    with ddpm_rt.Engine.from_callable(eps, (8,)) as engine:
        x = engine.sample(4, sampler="lcm", steps=4, clip="none", seed=0)
        assert x.nfe == 4 and np.isfinite(x).all()


def test_higher_order_is_closer_in_as_many_evaluations():
    with ddpm_rt.Engine.from_callable(eps, (200,)) as engine:
        options = {"clip": "none", "seed": 1, "grid": "logsnr"}
        true = engine.sample(2, sampler="dpmpp_3m", steps=400, **options)
        error = {
            s: np.abs(engine.sample(2, sampler=s, steps=40, **options) - true).max()
            for s in ("ddim", "deis", "dpmpp_2m", "unipc", "dpmpp_3m")
        }
    assert max(error["deis"], error["dpmpp_2m"]) < 0.2 * error["ddim"]
    assert error["unipc"] < error["dpmpp_2m"] and error["dpmpp_3m"] < 0.2 * error["unipc"]


def test_a_table_of_ones_own_and_its_errors():
    rows = ddpm_rt.rows("unipc", 9)
    with ddpm_rt.Engine.from_callable(eps, (1, 4, 4)) as engine:
        mine = engine.sample(2, sampler=ddpm_rt.Table(rows), seed=3, output="float")
        assert (mine == engine.sample(2, sampler="unipc", steps=9, seed=3, output="float")).all()
    with pytest.raises(ddpm_rt.OptionError, match="LAST"):
        ddpm_rt.Table(rows[:4])


def test_from_the_command_line(tmp_path):
    out = tmp_path / "digits.png"
    command = [
        sys.executable,
        "-m",
        "ddpm_rt",
        "sample",
        "digits",
        "-n",
        "2",
        "--seed",
        "0",
        "--sampler",
        "dpmpp_2m",
        "--steps",
        "6",
    ]
    done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and out.exists(), done.stderr
    listed = subprocess.run(
        [sys.executable, "-m", "ddpm_rt", "sample", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(name in listed for name in NAMES)
