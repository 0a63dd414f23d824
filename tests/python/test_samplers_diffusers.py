"""compat="diffusers" against diffusers' own schedulers: the same first noise, the same noise in every step.

The network is one function for both sides, in float32. Where diffusers computes a step's coefficients in float32 and loses more
than the tolerance by itself, its tables are given in float64 first (`exact`); the levels it visits stay its own.
"""

from __future__ import annotations

import importlib

import loops
import numpy as np
import pytest

import ddpm_rt
from ddpm_rt.reference.denoise import edm_preconditioning

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 3, 4, 4)
SEED = 7
UNIT = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}


def network(x, t):
    s = np.float32(t / 1000)
    return (np.tanh(1.1 * x + 0.3 * np.roll(x, 1, -1) + s) * np.float32(0.6 + 0.5 * s)).astype(np.float32)


def promote(scheduler):
    for name in ("betas", "alphas", "alphas_cumprod", "sigmas", "final_alpha_cumprod", "one"):
        value = getattr(scheduler, name, None)
        if isinstance(value, torch.Tensor):
            try:
                setattr(scheduler, name, value.double())
            except AttributeError:  # a property
                pass


def theirs(scheduler, n, monkeypatch, *, exact=False, net=network, **step):
    """The scheduler's own loop.  -> the last state, the peak |x|"""
    row, noise = [0], loops.engine_noise(SEED, SHAPE)
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(noise(row[0])))
    scheduler.set_timesteps(n)
    if exact:
        promote(scheduler)
    x = torch.from_numpy(UNIT) * scheduler.init_noise_sigma
    peak = float(x.abs().max())
    for i, t in enumerate(scheduler.timesteps):
        row[0] = i
        told = net(scheduler.scale_model_input(x, t).numpy().astype(np.float32), float(t))
        x = scheduler.step(torch.from_numpy(told), t, x, **step).prev_sample
        x = x.float()
        peak = max(peak, float(x.abs().max()))
    return x.numpy(), peak


def difference(name, config, n, monkeypatch, *, step=None, exact=False, schedule=None, net=network, **ours):
    """max|ours - theirs| / max(1, peak |x|)"""
    scheduler = getattr(diffusers, name)(**config)
    if schedule is None:
        schedule = {"alpha_bar": scheduler.alphas_cumprod.double().numpy()}
    expected, peak = theirs(scheduler, n, monkeypatch, exact=exact, net=net, **(step or {}))
    rows, sigma = loops.rows_of(steps=n, schedule=schedule, compat="diffusers", **ours)
    got = loops.float32(rows, UNIT * np.float32(sigma), net, SEED)
    assert np.isfinite(expected).all()
    return float(np.abs(got - expected).max() / max(1.0, peak))


UNCLIPPED, CLIPPED = 1e-5, 2e-4
SPACED = [("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)]
#: class, our sampler, its further configuration and our further options; the prediction types it has
SOLVERS = [
    ("DDPMScheduler", "ddpm", {"clip_sample": False}, {"clip": "none"}, ("epsilon", "v_prediction", "sample")),
    ("DDIMScheduler", "ddim", {"clip_sample": False}, {"clip": "none"}, ("epsilon", "v_prediction", "sample")),
    ("PNDMScheduler", "pndm", {}, {}, ("epsilon", "v_prediction")),
    ("PNDMScheduler", "pndm", {"skip_prk_steps": True}, {"sampler_options": {"skip_prk_steps": True}},
     ("epsilon", "v_prediction")),
    ("EulerDiscreteScheduler", "euler", {}, {}, ("epsilon", "v_prediction", "sample")),
    ("EulerAncestralDiscreteScheduler", "euler_ancestral", {}, {}, ("epsilon", "v_prediction")),
    ("HeunDiscreteScheduler", "heun", {}, {}, ("epsilon", "v_prediction", "sample")),
    ("LMSDiscreteScheduler", "lms", {}, {}, ("epsilon", "v_prediction", "sample")),
    ("DPMSolverMultistepScheduler", "dpmpp_2m", {}, {}, ("epsilon", "v_prediction", "sample")),
    ("DPMSolverMultistepScheduler", "dpmpp_3m", {"solver_order": 3}, {}, ("epsilon", "v_prediction", "sample")),
    ("DPMSolverMultistepScheduler", "dpmpp_2m_sde", {"algorithm_type": "sde-dpmsolver++"}, {}, ("epsilon", "v_prediction", "sample")),
    ("UniPCMultistepScheduler", "unipc", {}, {}, ("epsilon", "v_prediction", "sample")),
    ("DEISMultistepScheduler", "deis", {}, {}, ("epsilon", "v_prediction", "sample")),
]  # fmt: skip


@pytest.mark.parametrize(("spacing", "offset"), SPACED)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s[1] + ("-plms" if "skip_prk_steps" in s[2] else ""))
def test_spacings_and_predictions(solver, spacing, offset, monkeypatch):
    name, sampler, config, ours, predictions = solver
    options = {**ours.get("sampler_options", {}), **({"steps_offset": offset} if offset else {})}
    ours = {**ours, "sampler_options": options}
    for prediction in predictions:
        for n in (4, 10, 25):
            config = {**config, "prediction_type": prediction, "timestep_spacing": spacing, "steps_offset": offset}
            error = difference(
                name, config, n, monkeypatch, exact=name == "DDPMScheduler", sampler=sampler, grid=spacing,
                prediction=PREDICTIONS[prediction], **ours,
            )  # fmt: skip
            assert error <= UNCLIPPED, (prediction, n)


def test_the_tolerance_can_fail(monkeypatch):
    """Another solver's rows, or another grid's, are far outside of it."""
    assert difference("DDIMScheduler", {"clip_sample": False}, 10, monkeypatch, sampler="dpmpp_2m") > 1e-2
    assert (
        difference(
            "DDIMScheduler", {"clip_sample": False}, 10, monkeypatch, sampler="ddim", clip="none", grid="trailing"
        )
        > 1e-2
    )


SIGMA_SOLVERS = [
    ("DPMSolverMultistepScheduler", "dpmpp_2m", {}, {}, True),
    ("DPMSolverMultistepScheduler", "dpmpp_3m", {"solver_order": 3}, {}, True),
    ("DPMSolverSinglestepScheduler", "dpmpp_2s", {}, {}, True),
    ("UniPCMultistepScheduler", "unipc", {"solver_order": 3}, {"order": 3}, True),
    ("EulerDiscreteScheduler", "euler", {}, {}, True),
    ("DEISMultistepScheduler", "deis", {"solver_order": 2}, {"order": 2}, False),
    ("HeunDiscreteScheduler", "heun", {}, {}, False),
    ("LMSDiscreteScheduler", "lms", {}, {}, False),
]


@pytest.mark.parametrize("grid", ["karras", "exponential"])
@pytest.mark.parametrize("solver", SIGMA_SOLVERS, ids=lambda s: s[1])
def test_sigma_grids_and_ends(solver, grid, monkeypatch):
    name, sampler, config, options, ends = solver
    for end in ("zero", "sigma_min") if ends else (None,):
        for n in (2, 7, 14, 20) if sampler != "dpmpp_3m" or end == "zero" else (2, 7, 14):
            full = {**config, f"use_{grid}_sigmas": True, **({"final_sigmas_type": end} if end else {})}
            ours = {**options, **({"final_sigma": end} if end else {})}
            assert (
                difference(name, full, n, monkeypatch, sampler=sampler, grid=grid, sampler_options=ours) <= UNCLIPPED
            ), (end, n)


def test_a_sigma_grid_between_the_ends_of_a_leading_spacing(monkeypatch):
    config = {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1}
    options = {"spacing": "leading", "steps_offset": 1}
    for name, sampler in (("EulerDiscreteScheduler", "euler"), ("HeunDiscreteScheduler", "heun")):
        assert (
            difference(name, config, 12, monkeypatch, sampler=sampler, grid="karras", sampler_options=options)
            <= UNCLIPPED
        )


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_solver_types_and_final_steps(kind, end, monkeypatch):
    for n in (5, 14, 15):
        both, ours = {"solver_type": kind, "final_sigmas_type": end}, {"solver_type": kind, "final_sigma": end}
        for more in ({"euler_at_final": True}, {"lower_order_final": False}):
            for sampler, config in (("dpmpp_2m", {}), ("dpmpp_2m_sde", {"algorithm_type": "sde-dpmsolver++"})):
                error = difference("DPMSolverMultistepScheduler", both | config | more, n, monkeypatch, sampler=sampler,
                                   sampler_options=ours | more)  # fmt: skip
                assert error <= UNCLIPPED, (sampler, more, n)
        for more in ({}, {"lower_order_final": True}):
            error = difference("DPMSolverSinglestepScheduler", both | more, n, monkeypatch, sampler="dpmpp_2s",
                               sampler_options=ours | more)  # fmt: skip
            assert error <= UNCLIPPED, (more, n)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_orders(order, monkeypatch):
    for n in (6, 20):
        for low, end in ((True, "zero"), (False, "sigma_min")):
            for kind in ("bh1", "bh2") if end == "sigma_min" else ("bh2",):
                config = {
                    "solver_order": order,
                    "solver_type": kind,
                    "lower_order_final": low,
                    "final_sigmas_type": end,
                }
                ours = {"order": order, "solver_type": kind, "lower_order_final": low, "final_sigma": end}
                error = difference(
                    "UniPCMultistepScheduler", config, n, monkeypatch, sampler="unipc", sampler_options=ours
                )
                assert error <= UNCLIPPED, (n, kind, end)
            error = difference(
                "DEISMultistepScheduler", {"solver_order": order, "lower_order_final": low}, n, monkeypatch, exact=order == 3,
                sampler="deis", sampler_options={"order": order, "lower_order_final": low},
            )  # fmt: skip
            assert error <= UNCLIPPED, n
    assert difference("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, 20, monkeypatch,
                      sampler="dpmpp_3m", eta=1.0) <= UNCLIPPED  # with its sign of the third order term  # fmt: skip


def test_clipping(monkeypatch):
    for n in (5, 20, 50):
        for name, config, step, ours in (
            ("DDPMScheduler", {}, {}, {"sampler": "ddpm"}),
            ("DDIMScheduler", {}, {}, {"sampler": "ddim"}),
            ("DDIMScheduler", {}, {"eta": 1.0}, {"sampler": "ddim", "eta": 1.0}),
            ("DDIMScheduler", {}, {"use_clipped_model_output": True}, {"sampler": "ddim", "clip": "rederive"}),
            ("HeunDiscreteScheduler", {"clip_sample": True}, {}, {"sampler": "heun", "clip": "rederive"}),
            ("LCMScheduler", {"clip_sample": True}, {}, {"sampler": "lcm", "clip": "rederive"}),
        ):
            assert difference(name, config, n, monkeypatch, step=step, **ours) <= CLIPPED, (name, step, n)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_variances_and_the_noisy_last_step(spacing, monkeypatch):
    for variance in ("fixed_small", "fixed_large"):
        config = {"variance_type": variance, "timestep_spacing": spacing, "clip_sample": False}
        ours = {"sampler": "ddpm", "variance": variance, "clip": "none", "grid": spacing}
        assert difference("DDPMScheduler", config, 20, monkeypatch, exact=True, **ours) <= UNCLIPPED
    rows = ddpm_rt.rows(steps=20, compat="diffusers", **{**ours, "grid": "trailing"})
    assert rows[-1]["wx"][7] > 0.1  # its defect; without compat the last step adds none
    assert ddpm_rt.rows(steps=20, **ours)[-1]["wx"][7] == 0


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_learned_range_in_the_float64_executor(spacing, monkeypatch):
    config = {"variance_type": "learned_range", "timestep_spacing": spacing}
    scheduler = diffusers.DDPMScheduler(**config)
    alpha_bar = scheduler.alphas_cumprod.double().numpy()

    def net(x, t):  # twice the channels
        return np.concatenate([network(x, t), np.sin(3 * x)], 1 if x.ndim == 4 else 0).astype(np.float32)

    expected, peak = theirs(scheduler, 20, monkeypatch, exact=True, net=net)
    rows, sigma = loops.rows_of(sampler="ddpm", steps=20, schedule={"alpha_bar": alpha_bar}, compat="diffusers", grid=spacing,
                                network_variance="learned_range")  # fmt: skip
    noise = loops.engine_noise(SEED, SHAPE)
    for i in range(SHAPE[0]):
        got = loops.float64(
            rows, sigma * UNIT[i], lambda x, t: net(x[None].astype(np.float32), t)[0], lambda r, i=i: noise(r)[i]
        )
        assert np.abs(got - expected[i]).max() <= CLIPPED * max(1.0, peak)


def test_churn_is_added_after_the_evaluation(monkeypatch):
    for churn in (5.0, 40.0):
        step = {"s_churn": churn, "s_noise": 1.003, "s_tmin": 0.05, "s_tmax": 50.0}
        assert (
            difference("EulerDiscreteScheduler", {}, 20, monkeypatch, step=step, sampler="euler", sampler_options=step)
            <= UNCLIPPED
        )


def test_lambda_clipping_of_the_cosine_schedule(monkeypatch):
    config = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}
    for n in (5, 20):
        ours = {"sampler": "dpmpp_2m", "sampler_options": {"lambda_min": -5.1}}
        assert difference("DPMSolverMultistepScheduler", config, n, monkeypatch, **ours) <= UNCLIPPED
        assert (
            difference("DPMSolverSinglestepScheduler", config, n, monkeypatch, **{**ours, "sampler": "dpmpp_2s"})
            <= UNCLIPPED
        )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_lcm(prediction, monkeypatch):
    for n in (1, 4, 7, 50):
        error = difference("LCMScheduler", {"prediction_type": prediction}, n, monkeypatch, sampler="lcm",
                           prediction=PREDICTIONS[prediction])  # fmt: skip
        assert error <= UNCLIPPED * (3 if n == 1 else 1)  # one step from T: alpha is 0.07
    config, options = {"original_inference_steps": 100}, {"original_steps": 100}
    assert difference("LCMScheduler", config, 8, monkeypatch, sampler="lcm", sampler_options=options) <= UNCLIPPED


def test_terminal_snr(monkeypatch):
    """The schedulers that divide by alpha take 2^-24 for the last alpha_bar, which is 0."""
    for name, sampler in (
        ("EulerDiscreteScheduler", "euler"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("DDIMScheduler", "ddim"),
    ):
        config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
        config |= {"clip_sample": False} if sampler == "ddim" else {}
        scheduler = getattr(diffusers, name)(**config)
        alpha_bar = scheduler.alphas_cumprod.double().numpy().copy()
        alpha_bar[-1] = 0
        ours = {
            "sampler": sampler,
            "prediction": "v",
            "grid": "trailing",
            **({"clip": "none"} if sampler == "ddim" else {}),
        }
        assert difference(name, config, 20, monkeypatch, schedule={"alpha_bar": alpha_bar}, **ours) <= UNCLIPPED, name


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows(shift, monkeypatch):
    options = {"shift": shift}
    common = {"schedule": "flow", "prediction": "flow", "time_scale": 1000.0, "sampler_options": options}
    for n in (5, 20):
        assert (
            difference(
                "FlowMatchEulerDiscreteScheduler", {"shift": shift}, n, _flow(monkeypatch), sampler="euler", **common
            )
            <= UNCLIPPED
        )
        for name, sampler in (("DPMSolverMultistepScheduler", "dpmpp_2m"), ("UniPCMultistepScheduler", "unipc")):
            config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
            assert difference(name, config, n, monkeypatch, sampler=sampler, **common) <= UNCLIPPED, (name, n)


def _flow(monkeypatch):
    """FlowMatchEuler's pipelines start from unit noise and scale nothing."""
    cls = diffusers.FlowMatchEulerDiscreteScheduler
    monkeypatch.setattr(cls, "init_noise_sigma", 1.0, raising=False)
    monkeypatch.setattr(cls, "scale_model_input", lambda self, x, t: x, raising=False)
    return monkeypatch


def test_edm_euler(monkeypatch):
    """EDMEulerScheduler preconditions as EDM does; only its initial sigma is sqrt(sigma_max^2 + 1)."""
    scheduler = diffusers.EDMEulerScheduler()
    expected, _ = theirs(scheduler, 12, monkeypatch)
    rows, sigma = loops.rows_of(sampler="euler", steps=12, schedule="edm", prediction="edm", clip="none", grid="karras")
    assert sigma == 80.0 and rows[0]["t"] == pytest.approx(edm_preconditioning(80.0)[3], rel=1e-6)
    got = loops.float32(rows, UNIT * np.float32(np.sqrt(80.0**2 + 1)), network, SEED)
    assert np.abs(got - expected).max() <= UNCLIPPED * 320


def test_score_sde_ve(monkeypatch):
    """Its norms are means over the batch: one image."""
    scheduler = diffusers.ScoreSdeVeScheduler(snr=0.15, sigma_min=0.01, sigma_max=50.0)
    n, unit = 30, UNIT[:1]
    rows, sigma = loops.rows_of(sampler="pc", steps=n, schedule={"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0},
                                prediction="score", compat="diffusers", sampler_options={"snr": 0.15})  # fmt: skip
    noise, row = loops.engine_noise(SEED, unit.shape), [0]
    module = importlib.import_module(type(scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(noise(row[0])))

    def score(x, told):
        return (-x / (0.3**2 + told**2)).astype(np.float32)

    scheduler.set_timesteps(n)
    scheduler.set_sigmas(n)
    x = torch.from_numpy(unit) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        told = float(scheduler.sigmas[i])
        x = scheduler.step_correct(torch.from_numpy(score(x.numpy(), told)), x).prev_sample
        row[0] += 1
        out = scheduler.step_pred(torch.from_numpy(score(x.numpy(), told)), t, x)
        row[0] += 1
        x, mean = out.prev_sample, out.prev_sample_mean
    got = loops.float64(rows, sigma * unit, score, noise)
    assert np.abs(got - mean.numpy()).max() <= UNCLIPPED * 200
    got = loops.float32(rows, np.float32(sigma) * unit, score, SEED)
    assert np.abs(got - mean.numpy()).max() <= UNCLIPPED * 200


def test_what_diffusers_cannot_do_is_refused():
    for options, why in (
        ({"sampler": "langevin"}, "sampler"),
        ({"sampler": "ddim", "grid": "karras"}, "no such spacing"),
        ({"sampler": "pndm", "prediction": "x0"}, "prediction"),
        ({"sampler": "pndm", "steps": 3}, "Runge-Kutta"),
        ({"sampler": "heun", "sampler_options": {"final_sigma": "sigma_min"}}, "always ends at 0"),
        ({"sampler": "deis", "sampler_options": {"final_sigma": "zero"}}, "never ends at 0"),
        ({"sampler": "unipc", "sampler_options": {"solver_type": "bh1"}}, "infinity"),
        ({"sampler": "dpmpp_2m", "steps": 1000}, "timesteps are the same"),
        ({"sampler": "dpmpp_2m", "schedule": "vp"}, "a discrete one"),
        (
            {"sampler": "dpmpp_3m", "steps": 20, "grid": "karras", "sampler_options": {"final_sigma": "sigma_min"}},
            "divides",
        ),
    ):
        with pytest.raises(ddpm_rt.OptionError, match=why):
            ddpm_rt.rows(compat="diffusers", **{"steps": 10, **options})
