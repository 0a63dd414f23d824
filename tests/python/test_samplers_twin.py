"""The compiled rows against the loops of ddpm_rt/reference, in float64, on a denoiser in closed form."""

from __future__ import annotations

import loops
import numpy as np
import pytest
import torch

import ddpm_rt
from ddpm_rt.reference import run
from ddpm_rt.reference.denoise import Denoiser, gaussian
from ddpm_rt.reference.levels import Discrete
from ddpm_rt.row import CLIP

TOLERANCE = 1e-10
SHAPE = (2, 3)
RNG = np.random.default_rng(3)
UNIT = RNG.standard_normal(SHAPE)
ALPHA_BAR = ddpm_rt.kernels.alpha_bar("linear")
NAMES = [s.name for s in ddpm_rt.samplers()]


def noise(row):
    return np.random.default_rng(1000 + row).standard_normal(SHAPE)


def twin_denoiser(schedule, prediction="eps", clip="none", learned=False, **time):
    model = Discrete(ddpm_rt.kernels.alpha_bar(schedule)) if is_discrete(schedule) else run.twin_of(**kind_of(schedule))
    of = Denoiser(None, model, prediction, None if clip == "none" else clip, learned=learned, **time)
    exact = gaussian(of, 0.4, 0.6)

    def network(x, t):
        mean = exact(x, t)
        return torch.cat([mean, torch.sin(3 * x)]) if learned else mean

    of.network = network
    return of


def is_discrete(schedule):
    return ddpm_rt.kernels.noise_model(schedule)[1] is None


def kind_of(schedule):
    return ddpm_rt.kernels.noise_model(schedule)[1]


def difference(
    sampler,
    steps,
    schedule="linear",
    prediction="eps",
    *,
    clip="none",
    variance=None,
    grid=None,
    eta=None,
    network_variance="fixed",
    options=None,
):
    """max|rows - twin| / max(1, the greatest |x| on the way)"""
    of = twin_denoiser(schedule, prediction, clip, network_variance != "fixed")
    rows, sigma = loops.rows_of(
        sampler=sampler,
        steps=steps,
        schedule=schedule,
        prediction=prediction,
        clip=clip,
        variance=variance,
        grid=grid,
        eta=eta,
        network_variance=network_variance,
        sampler_options=options,
        exact=True,
    )
    assert clip == "none" or (rows["flags"] & CLIP).any()
    got = loops.float64(rows, sigma * UNIT, lambda x, t: of.network(torch.from_numpy(x), t).numpy(), noise)
    expected = run.sample(
        sampler,
        of,
        steps,
        torch.from_numpy(UNIT),
        lambda row: torch.from_numpy(noise(row)),
        grid=grid,
        eta=eta,
        variance=variance or ("fixed_small" if network_variance == "fixed" else network_variance),
        **(options or {}),
    ).numpy()
    assert np.isfinite(expected).all()
    return float(np.abs(got - expected).max() / max(1.0, loops.float64.peak))


def clips_of(sampler):
    return ["none", *next(s.clips for s in ddpm_rt.samplers() if s.name == sampler)]


FEW = {"langevin": {"inner_steps": 3}}  # the default of 100 at each level shows nothing more


DISCRETE_GRIDS = [
    "leading",
    "linspace",
    "trailing",
    "uniform",
    "karras",
    "exponential",
    "logsnr",
    "edm",
    "7,5,3",
    "ddim20",
]
CONTINUOUS = {
    "vp": ["uniform", "linspace", "karras", "exponential", "logsnr", "edm"],
    "sub_vp": ["uniform", "karras"],
    "ve": ["linspace", "karras", "exponential", "logsnr", "edm"],
    "flow": ["uniform", "linspace"],
    "edm": ["karras", "exponential", "logsnr", "linspace"],
}


def steps_of(grid, steps):
    return {"7,5,3": 15, "ddim20": 20}.get(grid, steps)


@pytest.mark.parametrize("grid", DISCRETE_GRIDS)
@pytest.mark.parametrize("sampler", NAMES)
def test_every_solver_on_every_grid(sampler, grid):
    cases = [("eps", clip, steps) for clip in clips_of(sampler) for steps in (2, 13)]
    if sampler != "pc":
        cases += [("v", "none", 6), ("x0", clips_of(sampler)[-1], 6)]
    for prediction, clip, steps in cases:
        steps = steps_of(grid, steps)
        error = difference(sampler, steps, "linear", prediction, clip=clip, grid=grid, options=FEW.get(sampler))
        assert error <= TOLERANCE, (prediction, clip, steps)


@pytest.mark.parametrize("schedule", list(CONTINUOUS))
@pytest.mark.parametrize("sampler", NAMES)
def test_every_solver_in_continuous_time(sampler, schedule):
    predictions = {"ve": ["score", "scaled_score"], "flow": ["flow", "v"], "edm": ["edm", "eps"]}.get(
        schedule, ["eps", "v"]
    )
    if sampler == "pc":
        predictions = ["score", "eps", "scaled_score", "energy"]
    for grid in CONTINUOUS[schedule]:
        for prediction in predictions:
            if schedule == "flow" and (sampler in ("pndm", "langevin", "pc") or prediction == "score"):
                continue
            for steps in (2, 9):
                options = dict(FEW.get(sampler, {}))
                error = difference(sampler, steps, schedule, prediction, clip="none", grid=grid, options=options)
                assert error <= TOLERANCE, (grid, prediction, steps)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "score", "scaled_score", "energy", "mean"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "euler", "heun", "deis"])
def test_every_parameterisation_of_a_discrete_schedule(sampler, prediction):
    for schedule in ("linear", "cosine"):
        grid = "leading" if prediction == "mean" else None
        for steps in (3, 12):
            assert difference(sampler, steps, schedule, prediction, grid=grid) <= TOLERANCE * (
                10 if schedule == "cosine" else 1
            )


@pytest.mark.parametrize("clip", ["none", "rederive"])
@pytest.mark.parametrize("network_variance", ["fixed", "learned", "learned_range"])
@pytest.mark.parametrize("grid", ["leading", "linspace", "trailing", "karras"])
def test_ddpm_variances(network_variance, grid, clip):
    fixed = ["fixed_small", "fixed_large"]
    for variance in [*fixed, *({network_variance} - {"fixed"})]:
        for prediction in ("eps", "v"):
            for steps in (2, 25):
                error = difference(
                    "ddpm",
                    steps,
                    "linear",
                    prediction,
                    clip=clip,
                    grid=grid,
                    variance=variance,
                    network_variance=network_variance,
                )
                assert error <= TOLERANCE, (variance, prediction, steps)


@pytest.mark.parametrize("sampler", [s for s in NAMES if s != "ddpm"])
def test_a_learned_variance_is_left_aside(sampler):
    clip, options = "none", FEW.get(sampler)
    a = difference(sampler, 5, "linear", "eps", clip=clip, network_variance="learned_range", options=options)
    assert a <= TOLERANCE if sampler != "pc" else True


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        *[("unipc", {"order": o, "solver_type": b, "lower_order_final": low}) for o in (1, 2, 3) for b in ("bh1", "bh2")
          for low in (True, False)],
        *[("lms", {"order": o}) for o in (1, 2, 3, 4)],
        *[("deis", {"order": o, "lower_order_final": low}) for o in (1, 2, 3) for low in (True, False)],
        *[(s, {"solver_type": t, "euler_at_final": e, "lower_order_final": low}) for s in ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde")
          for t in ("midpoint", "heun") for e in (True, False) for low in (True, False)],
        *[("dpmpp_2s", {"solver_type": t}) for t in ("midpoint", "heun")],
        ("pndm", {"skip_prk_steps": True}),
        ("pndm", {"skip_prk_steps": False}),
        *[(s, {"s_churn": c, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}) for s in ("heun", "euler") for c in (2.0, 40.0)],
        ("heun", {"s_churn": 10.0}),
        ("lcm", {"timestep_scaling": 3.0, "original_steps": 200}),
        ("lcm", {"timestep_scaling": 0}),
        *[("langevin", {"step_size": s, "inner_steps": 4, "denoise": d}) for s in ("ncsn", "ncsnv2") for d in (True, False)],
        ("langevin", {"step_lr": 1e-3, "inner_steps": 2}),
        ("pc", {"snr": 0.1, "inner_steps": 2}),
        ("pc", {"inner_steps": 0}),
    ],
)  # fmt: skip
def test_every_option_of_a_solver(sampler, options):
    for steps in (4, 9, 16):
        assert difference(sampler, steps, options=options) <= TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_2s"])
def test_eta(sampler, eta):
    for steps in (1, 5, 20):
        assert difference(sampler, steps, eta=eta) <= TOLERANCE


@pytest.mark.parametrize(
    "sampler", ["dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "unipc", "deis", "ddim", "euler", "heun", "lms", "pndm"]
)
@pytest.mark.parametrize(
    "options",
    [
        {"final_sigma": "sigma_min"},
        {"sigmas": [100.0, 20.0, 5.0, 1.5, 0.4, 0.05]},
        {"timesteps": [999, 800.5, 600, 331, 90, 7]},
        {"timesteps": [950, 700, 650, 20], "final_sigma": "sigma_min"},
    ],
)
def test_ends_and_lists(sampler, options):
    steps = len(options.get("sigmas", options.get("timesteps", range(11))))
    grid = None if steps < 11 else "trailing"
    assert difference(sampler, steps, grid=grid, options=options) <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 13, 14, 15, 16, 100, 1000])
@pytest.mark.parametrize("sampler", [n for n in NAMES if n != "langevin"])
def test_step_counts(sampler, steps):
    grid = {"lcm": "leading"}.get(sampler) or ("trailing" if steps > 999 and sampler in UNIFORM else None)
    for clip in clips_of(sampler)[-1:] if steps > 100 else clips_of(sampler):
        assert difference(sampler, steps, clip=clip, grid=grid) <= TOLERANCE


UNIFORM = {s.name for s in ddpm_rt.samplers() if s.default_grid == "uniform"}
