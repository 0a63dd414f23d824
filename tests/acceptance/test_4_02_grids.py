"""Line 2: timestep grids, from an integer index, and the conventions of four projects."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_rt

SIGMAS = np.sqrt(1 / ddpm_rt.kernels.alpha_bar("linear") - 1)


def times(grid, steps=10, **options):
    return ddpm_rt.rows("ddim", steps, grid=grid, **options)["t"].tolist()


def levels(rows):
    """sigma / alpha of every row of a unit-space sampler on an eps network: c_in = 1 / sqrt(sigma^2 + 1)."""
    return np.sqrt(1 / rows["c_in"].astype(np.float64) ** 2 - 1)


def test_integer_grids():
    assert times("leading") == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert times("linspace") == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert times("trailing") == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert times("uniform", 4) == [999, 749, 500, 250]
    assert times("lcm", 4) == [999, 759, 499, 259]
    assert times("ddim50", None) == list(range(0, 1000, 20))[::-1]
    assert times("3,2", None) == [999, 500, 499, 250, 0]
    assert times(None, None, sampler_options={"timesteps": [900, 450.5, 3]}) == [900, 450.5, 3]


@pytest.mark.parametrize("grid", ["leading", "linspace", "trailing", "uniform", "karras", "exponential", "logsnr"])
def test_every_count_has_as_many_rows_and_falling_noise(grid):
    for steps in [*range(1, 60), 100, 461, 500, 777, 998, 999, *([1000] if grid != "uniform" else [])]:
        rows = ddpm_rt.rows("ddim", steps, grid=grid)
        assert len(rows) == steps and (np.diff(rows["t"]) < 0).all()
        assert 0 <= rows["t"][-1] and rows["t"][0] <= 999
    with pytest.raises(ddpm_rt.OptionError, match="steps"):
        ddpm_rt.rows("ddim", 1001, grid="leading")


def test_sigma_grids():
    for name, options in (("karras", {}), ("karras", {"rho": 3.0, "sigma_min": 0.1, "sigma_max": 50.0})):
        low, high, rho = (
            options.get("sigma_min", SIGMAS[0]),
            options.get("sigma_max", SIGMAS[-1]),
            options.get("rho", 7.0),
        )
        expected = (high ** (1 / rho) + np.arange(12) / 11 * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        assert np.allclose(
            levels(ddpm_rt.rows("euler", 12, grid=name, sampler_options=options, exact=True)), expected, rtol=1e-5
        )
    found = np.log(levels(ddpm_rt.rows("euler", 12, grid="exponential", exact=True)))
    assert np.allclose(np.diff(found), np.diff(found)[0]) and found[-1] == pytest.approx(np.log(SIGMAS[0]))
    edm = ddpm_rt.rows("heun", 12, "edm", prediction="edm", grid="edm", clip="none")
    assert np.exp(4 * edm["t"][0]) == pytest.approx(80, rel=1e-4) and np.exp(4 * edm["t"][-1]) == pytest.approx(
        0.002, rel=1e-4
    )
    listed = ddpm_rt.rows("euler", None, sampler_options={"sigmas": [30.0, 3.0, 0.3]}, exact=True)
    assert np.allclose(levels(listed), [30, 3, 0.3])


def test_grids_are_listed():
    names = {g.name for g in ddpm_rt.grids()}
    assert names == {"leading", "linspace", "trailing", "uniform", "lcm", "karras", "exponential", "logsnr", "edm"}


def test_compat_sets_every_convention():
    plain = ddpm_rt.rows("dpmpp_2m", 20)
    assert ddpm_rt.rows("pndm", 20, compat="diffusers")["t"].tolist()[:4] == [950, 925, 925, 900]  # Runge-Kutta first
    assert ddpm_rt.rows("ddim", 250, compat="guided-diffusion")["t"].tolist() == list(range(0, 1000, 4))[::-1]
    k = ddpm_rt.rows("dpmpp_2m", 20, compat="k-diffusion")
    assert not (k["t"] == plain["t"]).all() and k["t"][5] != round(float(k["t"][5]))  # fractional timesteps
    assert ddpm_rt.kernels.initial_sigma("heun", 18, compat="edm") == pytest.approx(80, rel=0.01)
    assert (ddpm_rt.rows("ddim", 10, compat="diffusers", clip="none")["wx"][:, 1] != 0).any()
    with pytest.raises(ddpm_rt.OptionError, match="compat"):
        ddpm_rt.rows("ddim", 10, compat="somewhere")


def test_compat_is_an_argument_of_sample():
    with ddpm_rt.Engine("digits") as engine:
        a = engine.sample(2, labels=3, seed=0, sampler="ddim", steps=10, compat="diffusers")
        b = engine.sample(2, labels=3, seed=0, sampler="ddim", steps=10, compat="guided-diffusion")
    assert a.shape == b.shape == (2, 28, 28, 1) and not (np.asarray(a) == np.asarray(b)).all()
