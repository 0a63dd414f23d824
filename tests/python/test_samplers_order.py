"""Orders of convergence, measured in float64 rows on the single Gaussian, whose probability flow has a closed form."""

from __future__ import annotations

import loops
import numpy as np
import pytest
import torch

import ddpm_rt
from ddpm_rt.reference.denoise import Denoiser, gaussian
from ddpm_rt.reference.levels import EDM

MEAN, STD = 0.4, 0.6
ORDERS = {s.name: s.order for s in ddpm_rt.samplers()}
EDM_RANGE = {"name": "edm", "sigma_min": 0.5, "sigma_max": 1000.0}


def network_of(model, prediction="eps", **time):
    of = Denoiser(None, model, prediction, **time)
    exact = gaussian(of, MEAN, STD)
    return lambda x, t: exact(torch.from_numpy(np.asarray(x, np.float64)), t).numpy()


def exact_end(x, first, last):
    """(x / alpha - mean) / sqrt(std^2 + rel^2) is constant along the flow."""
    scale = np.sqrt((STD**2 + last.rel**2) / (STD**2 + first.rel**2))
    return last.alpha * (MEAN + (x / first.alpha - MEAN) * scale)


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def measured(sampler, steps, grid, options=None, eta=None):
    """The error at the schedule's least noisy level, where sampling is told to end, for each count of steps."""
    model = EDM(0.5, 1000.0)
    network, errors = network_of(model), []
    for n in steps:
        rows, sigma = loops.rows_of(
            sampler=sampler, steps=n, schedule=EDM_RANGE, prediction="eps", clip="none", grid=grid, eta=eta,
            sampler_options={"final_sigma": "sigma_min", **(options or {})}, exact=True,
        )  # fmt: skip
        x = sigma * np.array([-1.3, 0.2, 0.9])
        got = loops.float64(rows, x, network, lambda i: np.zeros(3))
        errors.append(np.abs(got - exact_end(x, model.at(1000.0), model.at(0.5))).max())
    return slope(steps, errors), errors


@pytest.mark.parametrize(
    ("sampler", "order", "options"),
    [
        ("ddim", 1, {}),
        ("euler", 1, {}),
        ("dpmpp_2m", 2, {}),
        ("dpmpp_2m", 2, {"solver_type": "heun"}),
        ("dpmpp_3m", 3, {}),
        ("dpmpp_2s", 2, {}),
        ("dpmpp_2s", 2, {"solver_type": "heun"}),
        ("unipc", 2, {"order": 1, "lower_order_final": False}),
        ("unipc", 3, {"order": 2, "lower_order_final": False}),
        ("unipc", 3, {"order": 2, "solver_type": "bh2", "lower_order_final": False}),
        ("unipc", 4, {"order": 3, "lower_order_final": False}),
        ("deis", 2, {"order": 2}),
        ("deis", 3, {"order": 3}),
        ("heun", 2, {}),
        ("pndm", 2, {}),
        ("pndm", 2, {"skip_prk_steps": False}),
        ("lms", 1, {"order": 1}),
        ("lms", 2, {"order": 2}),
        ("lms", 3, {"order": 3}),
        ("lms", 4, {"order": 4}),
    ],
)
def test_order_of_convergence(sampler, order, options):
    """Evenly in log sigma, from noise so strong that the start, of lower order, costs nothing."""
    got, errors = measured(sampler, [160, 230, 330], "logsnr", options)
    print(f"{sampler} {options}: slope {got:.2f}, errors {errors[0]:.2e} to {errors[-1]:.2e}")
    assert abs(got - order) <= 0.2
    info = next(s for s in ddpm_rt.samplers() if s.name == sampler)
    default = {o.name: o.default for o in info.options} | {"lower_order_final": "False"}
    if all(default[k] == str(v) for k, v in options.items()):
        assert info.order == order  # as ddpm_rt.samplers() says


def law(sampler, n, options):
    """(mean, std) of what comes out, exactly: rows are linear in x_T and in every z on a Gaussian, so each is followed alone."""
    model = EDM(0.5, 1000.0)
    rows, _ = loops.rows_of(
        sampler=sampler, steps=n, schedule=EDM_RANGE, prediction="eps", clip="none", grid="logsnr",
        sampler_options={"final_sigma": "sigma_min", **options}, exact=True,
    )  # fmt: skip
    spread = np.sqrt(STD**2 + 1000.0**2)  # of x_T
    x = np.full(len(rows) + 2, MEAN)
    x[1] += spread
    out = loops.float64(rows, x, network_of(model), lambda i: (np.arange(len(x)) == i + 2).astype(float))
    return out[0], np.sqrt(((out[1:] - out[0]) ** 2).sum())


@pytest.mark.parametrize(
    ("sampler", "order", "options"),
    [
        ("ddpm", 1, {}),
        ("euler_ancestral", 1, {}),
        ("dpmpp_2m_sde", 2, {}),
        ("dpmpp_2m_sde", 2, {"solver_type": "heun"}),
    ],
)
def test_weak_order_of_the_stochastic_samplers(sampler, order, options):
    """The mean is exact; the standard deviation goes to sqrt(STD^2 + sigma^2)."""
    steps, truth = [160, 230, 330], np.sqrt(STD**2 + 0.5**2)
    found = [law(sampler, n, options) for n in steps]
    errors = [abs(std - truth) for _, std in found]
    got = slope(steps, errors)
    print(f"{sampler} {options}: slope {got:.2f}, errors {errors[0]:.2e} to {errors[-1]:.2e}")
    assert max(abs(mean - MEAN) for mean, _ in found) < 1e-9
    assert abs(got - order) <= 0.2 and ORDERS[sampler] == order


def test_langevin_s_stationary_variance():
    """x + a score + sqrt(2 a) z keeps N(m, s^2) up to the step: variance s^2 / (1 - a / (2 s^2)); with ncsn's a / 2, of a / 2."""
    for step_size, a, per in (("ncsn", 0.02, 0.5), ("ncsnv2", 0.02, 1.0)):
        rows = ddpm_rt.rows(
            "langevin", schedule={"name": "ve", "sigma_min": 0.01, "sigma_max": 1.0}, prediction="energy", clip="none", exact=True,
            sampler_options={"sigmas": [0.5], "inner_steps": 4000, "step_lr": a, "step_size": step_size, "denoise": False},
        )  # fmt: skip
        s, x = 0.3, np.zeros(4002)
        out = loops.float64(rows, x, lambda x, t, s=s: x / s**2, lambda i: np.eye(1, 4002, i + 2)[0])
        assert (out**2).sum() == pytest.approx(s**2 / (1 - per * a / (2 * s**2)), rel=1e-9)


def test_the_published_third_order_formula_is_of_second_order():
    """What compat reproduces and the engine's own rows avoid: half of the parabola's last term."""
    model, errors = EDM(0.02, 1000.0), []
    for n in (160, 230, 330):
        sigmas = [1000.0 * (0.02 / 1000.0) ** (k / n) for k in range(n)]
        options = {"sigmas": sigmas, "final_sigma": "sigma_min"}
        rows, sigma = loops.rows_of(
            sampler="dpmpp_3m", steps=n, schedule={**EDM_RANGE, "sigma_min": 0.02}, prediction="eps", compat="k-diffusion", eta=0.0,
            sampler_options=options, exact=True,
        )  # fmt: skip
        x = sigma * np.array([-1.3, 0.2, 0.9])
        got = loops.float64(rows, x, network_of(model), lambda i: np.zeros(3))
        errors.append(np.abs(got - exact_end(x, model.at(1000.0), model.at(0.02))).max())
    assert abs(slope([160, 230, 330], errors) - 2) <= 0.2
