"""ddpm_rt/importers/scheduler.py: a scheduler_config is what diffusers' own scheduler of that config does.

The reference is diffusers' own loop (scale_model_input, step), with the same unit noise and the engine's noise in its steps.
"""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt.importers import scheduler, scheduler_keys

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from test_samplers_diffusers import SEED, SHAPE, UNIT, _flow, network, theirs

pytestmark = pytest.mark.filterwarnings("ignore")


def rowwise(net):
    return lambda x, t, labels: np.concatenate([net(x[i : i + 1], float(t[i])) for i in range(len(x))])


def config_of(own):
    """What `save_pretrained` writes, through JSON."""
    return json.loads(own.to_json_string())


def compared(name, config, n, monkeypatch, *, step=None, exact=False, net=network, **call):
    """max|ours - theirs| / max(1, peak |x|)"""
    own = getattr(diffusers, name)(**config)
    expected, peak = theirs(own, n, monkeypatch, exact=exact, net=net, **(step or {}))
    assert np.isfinite(expected).all()
    with ddpm_rt.Engine.from_callable(rowwise(net), SHAPE[1:], scheduler=config_of(own)) as engine:
        got = engine.sample(len(UNIT), steps=n, latents=UNIT, seed=SEED, output="float", **call)
    return float(np.abs(got - expected).max() / max(1.0, peak))


UNCLIPPED, CLIPPED = 1e-5, 2e-4
CASES = [
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample_range": 0.7}),
    ("DDPMScheduler", {"variance_type": "fixed_large", "timestep_spacing": "trailing"}),
    ("DDPMScheduler", {"variance_type": "fixed_small_log", "beta_schedule": "sigmoid"}),
    ("DDPMScheduler", {"beta_schedule": "laplace", "prediction_type": "v_prediction"}),
    ("DDPMScheduler", {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}),
    ("DDPMParallelScheduler", {"trained_betas": np.linspace(1e-3, 0.05, 200).tolist(), "num_train_timesteps": 200}),
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                       "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, "beta_schedule": "scaled_linear",
                       "beta_start": 0.00085, "beta_end": 0.012}),
    ("DDIMScheduler", {"clip_sample_range": 2.0, "timestep_spacing": "linspace", "prediction_type": "sample"}),
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 1.7, "dynamic_thresholding_ratio": 0.8}),
    ("DDIMScheduler", {"thresholding": True}),
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 0.6}),
    ("PNDMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True, "steps_offset": 1}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                                "timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"clip_sample": True, "clip_sample_range": 0.8}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1, "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": "heun", "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "euler_at_final": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
    ("DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": 1.4, "lower_order_final": False}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    ("DPMSolverSinglestepScheduler", {"solver_type": "heun", "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("UniPCMultistepScheduler", {"thresholding": True, "sample_max_value": 2.0}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 2.0, "prediction_type": "flow_prediction"}),
    ("DEISMultistepScheduler", {"solver_order": 1}),
    ("DEISMultistepScheduler", {"use_exponential_sigmas": True, "prediction_type": "v_prediction"}),
    ("DEISMultistepScheduler", {"thresholding": True, "sample_max_value": 1.5}),
    ("LCMScheduler", {}),
    ("LCMScheduler", {"original_inference_steps": 100, "timestep_scaling": 8.0, "clip_sample": True}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "num_train_timesteps": 500}),
    ("EDMEulerScheduler", {}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential", "sigma_max": 30.0, "sigma_data": 0.7}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v) or "-")
def test_it_samples_as_the_scheduler_does(name, config, monkeypatch):
    if name.startswith("FlowMatch"):
        _flow(monkeypatch)
    limited = config.get("thresholding") or config.get("clip_sample", name.startswith(("DDPM", "DDIM")))
    for n in (8, 20):
        error = compared(name, config, n, monkeypatch, exact=name.startswith("DDPM"))
        assert error <= (CLIPPED if limited else UNCLIPPED), (n, error)


def test_learned_range(monkeypatch):
    def net(x, t):  # twice the channels
        return np.concatenate([network(x, t), np.sin(3 * x)], 1).astype(np.float32)

    for spacing in ("leading", "trailing"):
        config = {"variance_type": "learned_range", "timestep_spacing": spacing}
        assert compared("DDPMScheduler", config, 20, monkeypatch, exact=True, net=net) <= CLIPPED


def test_eta_and_use_clipped_model_output_are_the_calls_own(monkeypatch):
    for step, call in (({"eta": 1.0}, {"eta": 1.0}), ({"use_clipped_model_output": True}, {"clip": "rederive"})):
        assert compared("DDIMScheduler", {}, 20, monkeypatch, step=step, **call) <= CLIPPED


def test_score_sde_ve(monkeypatch):
    """Its norms are means over the batch: one image."""
    own = diffusers.ScoreSdeVeScheduler(sigma_max=50.0)
    import importlib

    import loops

    n, unit = 12, UNIT[:1]
    noise, row = loops.engine_noise(SEED, unit.shape), [0]
    module = importlib.import_module(type(own).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.from_numpy(noise(row[0])))

    def score(x, told):
        return (-x / (0.3**2 + told**2)).astype(np.float32)

    own.set_timesteps(n)
    own.set_sigmas(n)
    x = torch.from_numpy(unit) * own.init_noise_sigma
    for i, t in enumerate(own.timesteps):
        told = float(own.sigmas[i])
        x = own.step_correct(torch.from_numpy(score(x.numpy(), told)), x).prev_sample
        row[0] += 1
        out = own.step_pred(torch.from_numpy(score(x.numpy(), told)), t, x)
        row[0] += 1
        x, mean = out.prev_sample, out.prev_sample_mean
    with ddpm_rt.Engine.from_callable(rowwise(score), SHAPE[1:], scheduler=config_of(own)) as engine:
        assert engine.info()["defaults"]["steps"] == 2000
        got = engine.sample(1, steps=n, latents=unit, seed=SEED, output="float")
    assert np.abs(got - mean.numpy()).max() <= UNCLIPPED * 200


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
@pytest.mark.parametrize("terminal", [False, True])
def test_alpha_bar_is_theirs(name, terminal):
    for T, ends in ((1000, (1e-4, 0.02)), (1000, (0.00085, 0.012)), (300, (1e-3, 0.05))):
        config = {"num_train_timesteps": T, "beta_schedule": name, "beta_start": ends[0], "beta_end": ends[1]}
        own = diffusers.DDPMScheduler(**config, rescale_betas_zero_snr=terminal)
        if not torch.isfinite(own.alphas_cumprod).all():
            continue  # laplace at zero terminal SNR
        settings = scheduler.read({"_class_name": "DDPMScheduler", **config, "rescale_betas_zero_snr": terminal})
        expected = own.alphas_cumprod.double().numpy()
        worst = np.abs(settings.schedule["alpha_bar"] / np.where(expected == 0, 1, expected) - (expected != 0)).max()
        limit = 1e-4 if terminal else 1e-5  # what is left of alpha_bar near the end by subtraction
        assert worst <= (0 if name in ("linear", "squaredcos_cap_v2") and not terminal else limit), (T, worst)


def test_each_class_has_every_key_and_its_default():
    import inspect

    for name, keys in scheduler_keys.CLASSES.items():
        signature = inspect.signature(getattr(diffusers, name).__init__)
        own = {p.name: p.default for p in list(signature.parameters.values())[1:]}
        assert keys == own, name


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("_class_name", {}),
        ("_class_name", {"_class_name": "KDPM2DiscreteScheduler"}),
        ("frobnicate", {"_class_name": "DDIMScheduler", "frobnicate": 3}),
        ("beta_schedule", {"_class_name": "DDIMScheduler", "beta_schedule": "quadratic"}),
        ("beta_start", {"_class_name": "DDIMScheduler", "beta_start": "small"}),
        ("beta_start", {"_class_name": "DDIMScheduler", "beta_start": -1.0}),
        ("trained_betas", {"_class_name": "DDIMScheduler", "trained_betas": [0.1, 2.0]}),
        ("num_train_timesteps", {"_class_name": "DDIMScheduler", "num_train_timesteps": 1.5}),
        ("prediction_type", {"_class_name": "DDPMScheduler", "prediction_type": "flow_prediction"}),
        ("predict_epsilon", {"_class_name": "DDPMScheduler", "predict_epsilon": False}),
        ("variance_type", {"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}),
        ("variance_type", {"_class_name": "DDPMScheduler", "variance_type": "learned"}),
        ("clip_sample", {"_class_name": "DDPMScheduler", "clip_sample": "yes"}),
        ("clip_sample_range", {"_class_name": "DDPMScheduler", "clip_sample_range": 0}),
        ("timestep_spacing", {"_class_name": "DDIMScheduler", "timestep_spacing": "sideways"}),
        ("use_beta_sigmas", {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}),
        ("interpolation_type", {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}),
        ("timestep_type", {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous",
                           "prediction_type": "v_prediction"}),
        ("algorithm_type", {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}),
        ("use_lu_lambdas", {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}),
        ("solver_order", {"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3}),
        ("predict_x0", {"_class_name": "UniPCMultistepScheduler", "predict_x0": False}),
        ("disable_corrector", {"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}),
        ("use_dynamic_shifting", {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}),
        ("sampling_eps", {"_class_name": "ScoreSdeVeScheduler", "sampling_eps": 1e-3}),
    ],
)  # fmt: skip
def test_an_unsupported_key_is_named(key, config):
    with pytest.raises(ddpm_rt.OptionError, match=rf"scheduler\.{key}: expected"):
        ddpm_rt.Engine.from_callable(rowwise(network), SHAPE[1:], scheduler=config)


def test_keys_of_another_class_are_ignored_as_by_diffusers(caplog):
    scheduler.read({"_class_name": "DDIMScheduler", "skip_prk_steps": True, "_diffusers_version": "0.6.0"})
    assert "skip_prk_steps" in caplog.text


def test_nothing_else_may_say_what_the_scheduler_says():
    for other in ({"schedule": "cosine"}, {"prediction": "v"}, {"time_scale": 2.0}):
        with pytest.raises(ddpm_rt.OptionError, match=next(iter(other))):
            ddpm_rt.Engine.from_callable(
                rowwise(network), SHAPE[1:], scheduler={"_class_name": "DDIMScheduler"}, **other
            )
    with pytest.raises(ddpm_rt.OptionError, match="scheduler: expected a mapping"):
        ddpm_rt.Engine.from_callable(rowwise(network), SHAPE[1:], scheduler="DDIMScheduler")


@pytest.mark.parametrize(
    ("config", "defect"),
    [
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}, r"t - T // n"),
        (
            {"_class_name": "DDPMScheduler", "steps_offset": 1, "variance_type": "fixed_large"},
            "noise .* in its last step",
        ),
        ({"_class_name": "PNDMScheduler"}, "does nothing"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}, "raw v outputs"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "half of the parabola"),
        ({"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "squaredcos_cap_v2"}, "lambda_min_clipped"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "rounded to integers"),
        ({"_class_name": "DEISMultistepScheduler", "use_karras_sigmas": True}, "repeats the last level"),
        (
            {"_class_name": "DDIMScheduler", "thresholding": True, "sample_max_value": 0.5},
            "sample_max_value 0.5 below 1",
        ),
        ({"_class_name": "ScoreSdeVeScheduler"}, "averages norms over the batch"),
    ],
)
def test_each_defect_has_one_warning(config, defect):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ddpm_rt.Engine.from_callable(rowwise(network), (1, 2, 2), scheduler=config) as engine:
            for _ in range(2):
                engine.sample(1, steps=7, seed=0, on_error="keep")
    told = [str(w.message) for w in caught if "reproduced: " in str(w.message)]
    assert len([t for t in told if re.search(defect, t)]) == 1, told


def test_compat_in_a_call_warns_too_and_without_it_nothing_does():
    with ddpm_rt.Engine.from_callable(rowwise(network), (1, 2, 2)) as engine:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.sample(1, steps=5, sampler="ddim", grid="linspace", seed=0)
            engine.sample(1, steps=5, sampler="dpmpp_3m", clip="none", seed=0)
        with pytest.warns(UserWarning, match="t - T // n"):
            engine.sample(1, steps=5, sampler="ddim", grid="linspace", compat="diffusers", seed=0)
        with pytest.warns(UserWarning, match="half of the parabola"):
            engine.sample(1, steps=5, sampler="dpmpp_3m", compat="k-diffusion", seed=0)
        counts = [n for n in range(2, 60) if _visits_neighbours(n)]
        with pytest.warns(UserWarning, match="floating-point stride"):
            engine.sample(1, steps=counts[0], sampler="ddpm", compat="guided-diffusion", seed=0)


def _visits_neighbours(n):
    exact = ddpm_rt.rows("ddpm", steps=n, grid=str(n), clip="none")["t"]
    return (ddpm_rt.rows("ddpm", steps=n, compat="guided-diffusion")["t"] != exact).any()


def test_another_sampler_leaves_the_scheduler_behind():
    config = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "clip_sample": False}
    with ddpm_rt.Engine.from_callable(rowwise(network), SHAPE[1:], scheduler=config, defaults={"steps": 7}) as engine:
        assert engine.info()["defaults"]["steps"] == 7 and engine.info()["defaults"]["compat"] == "diffusers"
    with ddpm_rt.Engine.from_callable(
        rowwise(network), SHAPE[1:], scheduler=config, defaults={"sampler": "dpmpp_2m"}
    ) as engine:
        assert engine.info()["defaults"]["compat"] == "" and engine.info()["defaults"]["grid"] == "uniform"
