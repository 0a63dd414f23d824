"""Every sampler through the real engine: float32 against the float64 twin, tables of one's own, defaults, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import write_mixture_plan

import ddpm_rt
from ddpm_rt.reference import run
from ddpm_rt.reference.denoise import Denoiser, gaussian
from ddpm_rt.reference.levels import VE, Discrete, Flow
from ddpm_rt.row import PUSH, VLB

SHAPE = (2, 3)
NAMES = [s.name for s in ddpm_rt.samplers()]
VE_SCHEDULE = {"name": "ve", "sigma_min": 0.01, "sigma_max": 10.0}
LINEAR = Discrete(ddpm_rt.kernels.alpha_bar("linear"))
ULP = 2.0**-23


def denoiser(model=LINEAR, prediction="eps", clip=None, scale=1.0):
    of = Denoiser(None, model, prediction, clip, time_scale=scale)
    of.network = gaussian(of, 0.4, 0.6)
    return of


def twin(of, sampler, steps, unit, noise, nudge=0.0, **options):
    """float64; nudge: the relative size of a random change of x_T and of every output."""
    rng = np.random.default_rng(0)
    exact = of.network

    def nudged(x):
        return x * (1 + nudge * torch.from_numpy(rng.choice([-1.0, 1.0], SHAPE)))

    of.network = lambda x, t: nudged(exact(x, t))
    try:
        return run.sample(sampler, of, steps, nudged(torch.from_numpy(unit)), noise, **options).numpy()
    finally:
        of.network = exact


def share_of_tolerance(
    sampler, steps, *, model=LINEAR, schedule="linear", prediction="eps", clip="none", scale=1.0, **options
):
    """Engine in float32 against the twin, as a share of 1e-5 max(1, max|x|, kappa); kappa as DESIGN's contract has it: the
    twin's own change when x_T and every eps move by one ulp, divided by 1e-6."""
    of = denoiser(model, prediction, None if clip == "none" else clip, scale)

    def fn(x, t, labels):
        return np.stack(
            [of.network(torch.from_numpy(x[i].astype(np.float64)), float(t[i])).numpy() for i in range(len(x))]
        )

    solver = options.get("sampler_options", {})
    with ddpm_rt.Engine.from_callable(
        lambda *a: fn(*a).astype(np.float32), SHAPE, schedule, prediction, role="vector", time_scale=scale
    ) as engine:
        got = np.asarray(engine.sample(2, sampler=sampler, steps=steps, clip=clip, seed=5, **options))
    worst = 0.0
    for i in range(2):
        unit = ddpm_rt.noise(5 + i, 0, SHAPE).astype(np.float64)

        def noise(row, i=i):
            return torch.from_numpy(ddpm_rt.noise(5 + i, row, SHAPE, 1).astype(np.float64))

        more = {**{k: v for k, v in options.items() if k in ("grid", "eta", "variance")}, **solver}
        exact = twin(of, sampler, steps, unit, noise, **more)
        kappa = np.abs(twin(of, sampler, steps, unit, noise, nudge=ULP, **more) - exact).max() / 1e-6
        error, tolerance = np.abs(got[i] - exact).max(), 1e-5 * max(1.0, np.abs(exact).max(), kappa)
        print(f"{sampler:16s} steps {steps:5d}: error {error:.2e}, kappa {kappa:.2g}, share {error / tolerance:.2f}")
        worst = max(worst, error / tolerance)
    return worst


@pytest.mark.parametrize("sampler", NAMES)
def test_float32_by_the_kappa_rule(sampler):
    few = {"sampler_options": {"inner_steps": 5}} if sampler == "langevin" else {}
    if sampler == "pc":  # the steps of its corrector are relative to norms: sums of float32 squares
        few = {"model": VE(0.01, 10.0), "schedule": VE_SCHEDULE, "prediction": "score"}
    for steps in (1, 4, 20):
        for clip in ("none", *next(s.clips for s in ddpm_rt.samplers() if s.name == sampler)):
            assert share_of_tolerance(sampler, steps, clip=clip, **few) <= 1


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "unipc", "heun", "lms", "pndm"])
def test_float32_in_many_steps(sampler):
    assert share_of_tolerance(sampler, 300) <= 1


@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "score", "scaled_score", "energy"])
def test_float32_of_every_parameterisation(prediction):
    assert share_of_tolerance("dpmpp_2m", 12, prediction=prediction) <= 1


def test_float32_on_a_flow_and_with_churn():
    for sampler in ("euler", "heun", "dpmpp_2m", "unipc"):
        assert share_of_tolerance(sampler, 12, model=Flow(), schedule="flow", prediction="flow", scale=1000.0) <= 1
    churn = {"s_churn": 20.0, "s_tmax": 100.0}
    assert share_of_tolerance("heun", 18, sampler_options=churn) <= 1


def linear_eps(x, t, labels):
    return (0.3 * x + 0.001 * t.reshape(-1, *[1] * (x.ndim - 1))).astype(np.float32)


@pytest.mark.parametrize("sampler", NAMES)
def test_bits_do_not_depend_on_the_batch(sampler):
    options = {"sampler": sampler, "steps": 6, "clip": "none"}
    if sampler == "langevin":
        options["sampler_options"] = {"inner_steps": 3}
    schedule, prediction = (VE_SCHEDULE, "score") if sampler == "pc" else ("linear", "eps")
    with ddpm_rt.Engine.from_callable(linear_eps, (2, 3), schedule, prediction, max_batch=4, role="vector") as engine:
        batch = np.asarray(engine.sample(7, seed=3, **options))
        for i in (0, 5):
            assert (np.asarray(engine.sample(1, seed=3 + i, **options))[0] == batch[i]).all()


def test_a_table_of_ones_own():
    rows = ddpm_rt.rows("dpmpp_2m", 8)
    table = ddpm_rt.Table(rows)
    assert len(table) == 8 and "8 rows" in repr(table)
    with ddpm_rt.Engine.from_callable(linear_eps, (1, 4, 4)) as engine:
        a = engine.sample(3, sampler=table, seed=1, output="float")
        assert (a == engine.sample(3, sampler="dpmpp_2m", steps=8, seed=1, output="float")).all() and a.nfe == 8
        rows["clip_hi"] = 0.01
        assert not (a == engine.sample(3, sampler=ddpm_rt.Table(rows), seed=1, output="float")).all()
        twice = engine.sample(3, sampler=ddpm_rt.Table(table.rows, 2.0), seed=1, output="float")
        noise = np.stack([ddpm_rt.noise(1 + i, 0, (1, 4, 4)) for i in range(3)])
        assert (twice == engine.sample(3, sampler=table, x_init=2 * noise, seed=1, output="float")).all()
        for extra in ({"steps": 8}, {"grid": "leading"}, {"eta": 0.0}, {"compat": "diffusers"}, {"clip": "none"}):
            with pytest.raises(ddpm_rt.OptionError, match="rows say it all"):
                engine.sample(1, sampler=table, **extra)


def test_a_bad_table_is_refused_where_it_is_made():
    rows = ddpm_rt.rows("dpmpp_2m", 8)
    with pytest.raises(ddpm_rt.OptionError, match="PUSH"):
        without = rows.copy()
        without["flags"] &= ~np.uint32(PUSH)
        ddpm_rt.Table(without)
    with pytest.raises(ddpm_rt.OptionError, match="LAST"):
        ddpm_rt.Table(rows[:-1])
    with pytest.raises(ddpm_rt.OptionError, match="VLB"):
        with_truth = rows.copy()
        with_truth["flags"] |= np.uint32(VLB)
        with ddpm_rt.Engine.from_callable(linear_eps, (2, 3), role="vector") as engine:
            engine.sample(1, sampler=ddpm_rt.Table(with_truth))
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ddpm_rt.OptionError, match="init_sigma"):
            ddpm_rt.Table(rows, sigma)
    with pytest.raises(ddpm_rt.ShapeError, match="ROW"):
        ddpm_rt.Table(np.zeros(3))


def test_compat_is_an_option_of_a_call(engine):
    a = engine.sample(2, labels=0, seed=1, sampler="heun", steps=5, compat="diffusers", output="float")
    b = engine.sample(2, labels=0, seed=1, sampler="heun", steps=5, output="float")
    assert np.isfinite(a).all() and not (a == b).all()


def test_compat_sets_the_uint8_rule(engine):
    options = {"labels": 0, "seed": 1, "sampler": "ddim", "steps": 10}
    raw = np.asarray(engine.sample(3, output="float", compat="guided-diffusion", **options))
    levels = (raw.astype(np.float32) + 1) * np.float32(127.5)
    truncated, rounded = np.clip(levels, 0, 255).astype(np.uint8), np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    assert not (truncated == rounded).all()
    pixels = engine.sample(3, compat="guided-diffusion", **options)
    assert (np.moveaxis(np.asarray(pixels), -1, 1) == truncated).all()
    for compat in ("", "diffusers"):
        more = {} if not compat else {"compat": compat}
        raw = np.asarray(engine.sample(3, output="float", **more, **options))
        expected = np.clip(np.rint((raw + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)
        assert (np.moveaxis(np.asarray(engine.sample(3, **more, **options)), -1, 1) == expected).all()


def test_a_plan_s_defaults_hold_for_its_own_sampler(tmp_path):
    defaults = {
        "sampler": "unipc",
        "steps": 7,
        "scale": 2.0,
        "clip": "rederive",
        "sampler_options": {"order": 3, "solver_type": "bh2"},
    }
    with ddpm_rt.Engine(write_mixture_plan(tmp_path / "u.plan", defaults=defaults)) as engine:
        a = engine.sample(2, labels=0, seed=3, output="float")
        again = engine.sample(
            2, labels=0, seed=3, sampler="unipc", steps=7, sampler_options=defaults["sampler_options"], output="float"
        )
        assert (a == again).all() and not (
            a == engine.sample(2, labels=0, seed=3, sampler_options={"order": 1}, output="float")
        ).all()
        heun = engine.sample(1, labels=0, scale=1.0, sampler="heun")
        assert heun.nfe == 2 * 18 - 1 and heun._provenance.settings["steps"] == 18  # heun's own
    compat = {"sampler": "ddim", "compat": "diffusers", "scale": 1.0}
    with ddpm_rt.Engine(write_mixture_plan(tmp_path / "c.plan", defaults=compat)) as engine:
        assert engine.info()["defaults"]["compat"] == "diffusers" and engine.info()["defaults"]["clip"] == "keep_eps"
        a = engine.sample(1, labels=0, seed=0, output="float")
        assert (a == engine.sample(1, labels=0, seed=0, compat="diffusers", sampler="ddim", output="float")).all()


def test_a_plan_in_continuous_time(tmp_path):
    """The closed-form mixture on a flow: every solver comes to the same end."""
    plan = write_mixture_plan(
        tmp_path / "flow.plan", schedule={"kind": "flow"}, prediction="flow", time={"type": "t", "scale": 1000.0},
        defaults={"sampler": "euler", "steps": 200, "scale": 1.0, "clip": "none"},
    )  # fmt: skip
    with ddpm_rt.Engine(plan) as engine:
        assert engine.info()["schedule"]["kind"] == "flow"
        a = engine.sample(4, labels=1, seed=0, output="float")
        b = engine.sample(4, labels=1, seed=0, sampler="dpmpp_2m", steps=60, clip="none", output="float")
        assert np.abs(a - b).max() < 0.02 and abs(float(np.mean(b)) - 0.5) < 0.1


def test_sampler_options_from_the_command_line(run, tmp_path, mixture_plan):
    out = tmp_path / "a.npz"
    done = run(
        "sample", mixture_plan, "-n", "2", "--seed", "0", "--label", "0", "--sampler", "unipc", "--steps", "5", "--grid", "trailing",
        "--sampler-options", json.dumps({"order": 3}), "-o", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with ddpm_rt.Engine(mixture_plan) as engine:
        expected = engine.sample(
            2, labels=0, seed=0, sampler="unipc", steps=5, grid="trailing", sampler_options={"order": 3}
        )
    assert (np.load(out)["arr_0"] == np.asarray(expected)).all()
    wrong = run("sample", mixture_plan, "--sampler", "unipc", "--sampler-options", '{"orders": 3}', "-o", out)
    assert wrong.returncode != 0 and "orders" in wrong.stderr
