"""Line 3: one network, told as every parameterisation, on every noise model; learned-range rows."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_rt

MEAN, STD = -0.2, 0.4
AB = ddpm_rt.kernels.alpha_bar("cosine")


def alpha_sigma(schedule, t):
    if schedule == "cosine":
        return np.sqrt(AB[t.astype(int)]), np.sqrt(1 - AB[t.astype(int)])
    if schedule == "flow":
        return 1 - t, t
    if schedule in ("ve", "edm"):
        return np.ones_like(t), t  # told sigma
    log_alpha = -(t**2) * 19.9 / 4 - t * 0.1 / 2
    a = np.exp(log_alpha)
    return a, (1 - a**2 if schedule == "sub_vp" else np.sqrt(1 - a**2))


def network(schedule, prediction):
    """What a perfect network of that kind returns for data N(MEAN, STD^2)."""

    def fn(x, t, labels):
        if prediction == "edm":
            sigma = np.exp(4 * t.astype(np.float64)).reshape(-1, 1)
            noisy = x * np.sqrt(sigma**2 + 0.25)
            x0 = (MEAN * sigma**2 + STD**2 * noisy) / (STD**2 + sigma**2)
            return ((x0 - 0.25 / (sigma**2 + 0.25) * noisy) * np.sqrt(sigma**2 + 0.25) / (sigma * 0.5)).astype(
                np.float32
            )
        a, s = (v.reshape(-1, 1) for v in alpha_sigma(schedule, t.astype(np.float64)))
        x0 = (MEAN * s**2 + a * STD**2 * x) / (a**2 * STD**2 + s**2)
        e = s * (x - a * MEAN) / (a**2 * STD**2 + s**2)
        made = {
            "eps": e,
            "x0": x0,
            "v": a * e - s * x0,
            "flow": e - x0,
            "score": -e / s,
            "scaled_score": -e,
            "energy": e / s,
        }
        if prediction == "mean":
            k = t.astype(int)
            before = np.where(k > 0, AB[k - 1], 1.0).reshape(-1, 1)
            beta = 1 - a**2 / before
            made["mean"] = (np.sqrt(before) * beta * x0 + np.sqrt(1 - beta) * (1 - before) * x) / s**2
        return made[prediction].astype(np.float32)

    return fn


CASES = [
    *[("cosine", p) for p in ("eps", "x0", "v", "flow", "score", "scaled_score", "energy", "mean")],
    *[("vp", p) for p in ("eps", "v", "score")],
    *[("sub_vp", p) for p in ("eps", "score")],
    *[("ve", p) for p in ("score", "scaled_score", "x0")],
    *[("flow", p) for p in ("flow", "v")],
    ("edm", "edm"),
]


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
def test_a_perfect_network_samples_the_data(schedule, prediction):
    with ddpm_rt.Engine.from_callable(network(schedule, prediction), (100,), schedule, prediction) as engine:
        for sampler in ("ddim", "dpmpp_2m"):
            grid = "trailing" if schedule == "cosine" else None
            x = engine.sample(20, sampler=sampler, steps=60, grid=grid, clip="none", seed=0)
            assert abs(x.mean() - MEAN) < 0.05 and abs(x.std() - STD) < 0.06, sampler


def test_parameterisations_of_one_network_are_one_sampler():
    pictures = []
    for prediction in ("eps", "x0", "v", "flow", "score", "energy"):
        with ddpm_rt.Engine.from_callable(network("vp", prediction), (4,), "vp", prediction) as engine:
            pictures.append(np.asarray(engine.sample(3, sampler="unipc", steps=12, clip="none", seed=7)))
    for other in pictures[1:]:
        assert np.abs(other - pictures[0]).max() < 2e-4


def test_edm_preconditioning_in_the_rows():
    """Karras et al. table 1: c_skip, c_out, c_in, c_noise at every sigma."""
    rows = ddpm_rt.rows("heun", 18, {"name": "edm", "sigma_data": 0.7}, prediction="edm", clip="none", exact=True)
    sigma = np.exp(4 * rows["t"])
    assert np.allclose(rows["c_in"], 1 / np.sqrt(sigma**2 + 0.49))
    assert np.allclose(rows["p"], 0.49 / (sigma**2 + 0.49)) and np.allclose(
        rows["q"], 0.7 * sigma / np.sqrt(sigma**2 + 0.49)
    )


def test_learned_range_in_the_rows():
    """Nichol & Dhariwal eq. 15: the flag, and log beta~ and log beta of the (respaced) step."""
    rows = ddpm_rt.rows("ddpm", 10, network_variance="learned_range", exact=True)
    flag = ddpm_rt.row.LEARNED_RANGE
    assert (rows["flags"] & flag).all()
    ab = ddpm_rt.kernels.alpha_bar("linear")
    beta = 1 - ab[500] / ab[400]
    row = rows[rows["t"] == 500][0]
    assert row["log_var_hi"] == pytest.approx(np.log(beta)) and row["wx"][7] == 1
    assert row["log_var_lo"] == pytest.approx(np.log(beta * (1 - ab[400]) / (1 - ab[500])))
    assert rows[-1]["wx"][7] == 0
    other = ddpm_rt.rows("ddim", 10, eta=0.5, network_variance="learned_range", exact=True)
    assert (other["log_var_hi"] == 0).all() and (
        other["wx"][:, 7] == ddpm_rt.rows("ddim", 10, eta=0.5, exact=True)["wx"][:, 7]
    ).all()


def test_an_unknown_kind_is_an_error_that_names_the_known_ones():
    for options in ({"prediction": "delta"}, {"schedule": "warp"}, {"schedule": {"name": "vp", "beta_max": -1.0}}):
        with pytest.raises(ddpm_rt.OptionError, match="expected"):
            ddpm_rt.Engine.from_callable(lambda x, t, labels: x, (4,), **options)
