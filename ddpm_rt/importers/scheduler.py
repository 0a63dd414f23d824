"""A diffusers scheduler_config as the engine's own settings: schedule, prediction, and what a call does unasked.

`compat="diffusers"` has the conventions of each scheduler class; this module translates the keys of a configuration into the
options of that class's sampler (diffusers 0.42). A value that has no counterpart is an OptionError that names its key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import OptionError
from . import scheduler_betas
from .scheduler_keys import PREDICTIONS, SIGMAS, Config


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """What a configuration comes to: arguments of `export_plan` and `Engine.from_callable`.

    variance: of the network's output, "fixed" or "learned_range" (twice the channels). defaults: of the plan.
    """

    class_name: str
    schedule: dict[str, Any]
    prediction: str
    variance: str
    time: str | None
    time_scale: float
    defaults: dict[str, Any]

    def defaults_with(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """`given` over its own. Another sampler or another project keeps only how x0 is limited, as in a call."""
        given = {k: v for k, v in (given or {}).items() if v is not None}
        own = self.defaults
        if any(key in given and given[key] != own.get(key) for key in ("sampler", "compat")):
            own = {k: v for k, v in own.items() if k in ("clip_range", "threshold")}
        if "sampler_options" in given:
            given["sampler_options"] = own.get("sampler_options", {}) | dict(given["sampler_options"])
        return own | given


def read(config: Mapping[str, Any]) -> Scheduler:
    """The settings of a scheduler_config mapping with `_class_name`. OptionError naming the key that is wrong or unsupported."""
    c = Config(config)
    name = c.name.replace("Parallel", "")
    if name == "ScoreSdeVeScheduler":
        return _score_sde(c)
    if name == "FlowMatchEulerDiscreteScheduler":
        return _flow_match(c)
    if name == "EDMEulerScheduler":
        return _edm(c)
    c.expect_unset(
        "use_beta_sigmas", "use_lu_lambdas", "use_dynamic_shifting", "disable_corrector", "solver_p", "shift_terminal"
    )
    defaults: dict[str, Any] = {"compat": "diffusers", "sampler_options": {}}
    _grid(c, defaults)
    _limits(c, defaults)
    variance = _OWN[name](c, defaults)
    if offset := defaults["sampler_options"].get("steps_offset", 0):
        _steps_that_fit(c, offset, defaults)
    if not defaults["sampler_options"]:
        del defaults["sampler_options"]
    flow = c.flag("use_flow_sigmas")
    allowed = ["flow_prediction"] if flow else [k for k in PREDICTIONS if k != "flow_prediction"]
    prediction = PREDICTIONS[c.one_of("prediction_type", *allowed)]
    if flow:
        T = c.integer("num_train_timesteps", 1)
        return Scheduler(c.name, {"name": "flow", "t_min": 1 / T}, prediction, variance, None, float(T), defaults)
    return Scheduler(c.name, {"alpha_bar": _alpha_bar(c)}, prediction, variance, None, 1.0, defaults)


def _steps_that_fit(c: Config, offset: int, to: dict[str, Any]) -> None:
    """An offset that would lead the sampler's own number of steps out of the schedule lowers that number."""
    T = c.integer("num_train_timesteps", 1)
    own = min(T, {"ddpm": T, "ddim": 50, "pndm": 50}.get(to["sampler"], 30))
    most = min(own, 50)
    if (own - 1) * (T // own) + offset >= T:
        to["steps"] = next((n for n in range(most, 0, -1) if (n - 1) * (T // n) + offset < T), 1)


def _alpha_bar(c: Config) -> np.ndarray:
    if c.get("trained_betas") is not None:
        try:
            betas = np.asarray(c.get("trained_betas"), np.float32)
        except (TypeError, ValueError):
            betas = np.empty(0)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
            raise OptionError("scheduler.trained_betas: expected a list of numbers in (0, 1], got something else")
    else:
        T = c.integer("num_train_timesteps", 1)
        betas = scheduler_betas.betas(c.get("beta_schedule"), c.number("beta_start"), c.number("beta_end"), T)
        if not ((betas > 0) & (betas <= 1)).all():
            raise OptionError(
                f"scheduler.beta_start: expected betas in (0, 1] up to beta_end, got {betas.min():g} to {betas.max():g}"
            )
    if c.flag("rescale_betas_zero_snr"):
        betas = scheduler_betas.zero_terminal_snr(betas)
    return scheduler_betas.alpha_bar_of(betas)


def _grid(c: Config, to: dict[str, Any]) -> None:
    """Spacing, sigma grid and their offsets, ends and clipping."""
    options = to["sampler_options"]
    spacing = c.one_of("timestep_spacing", "leading", "linspace", "trailing") if "timestep_spacing" in c else None
    offset = c.integer("steps_offset") if spacing == "leading" else 0
    named = [k for k in ("karras", "exponential") if c.flag(f"use_{k}_sigmas")]
    if len(named) > 1:
        raise OptionError("scheduler.use_exponential_sigmas: expected at most one of its use_*_sigmas, got two")
    if c.flag("use_flow_sigmas"):
        if named:
            raise OptionError(f"scheduler.use_{named[0]}_sigmas: expected false beside use_flow_sigmas, got true")
        if c.number("flow_shift") != 1:
            options["shift"] = c.number("flow_shift")
    elif named:
        to["grid"] = named[0]
        if c.name.startswith(("Euler", "Heun", "LMS")):  # the others' sigma grids span the whole schedule
            options["spacing"] = spacing
            for key in ("sigma_min", "sigma_max"):
                if c.get(key) is not None:
                    options[key] = c.number(key)
        else:
            c.expect_unset("sigma_min", "sigma_max")
            offset = 0
    elif spacing is not None and c.name != "LCMScheduler":
        to["grid"] = spacing
    if offset and c.name != "LCMScheduler":
        options["steps_offset"] = offset
    if "final_sigmas_type" in c:
        options["final_sigma"] = c.one_of("final_sigmas_type", "zero", "sigma_min")
    if "lambda_min_clipped" in c and not c.flag("use_flow_sigmas"):
        value = c.get("lambda_min_clipped")
        least = float("-inf") if value in (None, "-inf", "-Infinity", float("-inf")) else c.number("lambda_min_clipped")
        if least > float("-inf"):
            options["lambda_min"] = least


def _limits(c: Config, to: dict[str, Any]) -> None:
    """Clip or threshold of x0. DDIM keeps the network's eps; the other methods step in x0, or derive eps from it."""
    kept = "keep_eps" if c.name.startswith("DDIM") else "rederive"
    if c.flag("thresholding"):
        p, cap = c.number("dynamic_thresholding_ratio"), c.number("sample_max_value")
        if cap == 1:  # quantile and cap are both 1 then: static clipping
            to |= {"clip": kept, "clip_range": [-1.0, 1.0]}
        else:
            to |= {"clip": kept, "clip_range": [-1.0, 1.0], "threshold": [p, cap]}
    elif c.flag("clip_sample"):
        limit = c.number("clip_sample_range")
        if not limit > 0:
            raise OptionError(f"scheduler.clip_sample_range: expected a number above 0, got {limit:g}")
        to |= {"clip": kept, "clip_range": [-limit, limit]}
    else:
        to["clip"] = "none"


def _ddpm(c: Config, to: dict[str, Any]) -> str:
    nan = "its scheduler takes the square root of a logarithm"
    kind = c.one_of("variance_type", "fixed_small", "fixed_small_log", "fixed_large", "learned_range",
                    why=nan if c.get("variance_type") == "fixed_large_log" else "")  # fmt: skip
    kind = kind.removesuffix("_log")
    to |= {"sampler": "ddpm", "variance": kind}
    return "learned_range" if kind == "learned_range" else "fixed"


def _ddim(c: Config, to: dict[str, Any]) -> str:
    to["sampler"] = "ddim"
    to["sampler_options"]["final_sigma"] = "zero" if c.flag("set_alpha_to_one") else "sigma_min"
    return "fixed"


def _pndm(c: Config, to: dict[str, Any]) -> str:
    _ddim(c, to)
    to["sampler"] = "pndm"
    to["sampler_options"]["skip_prk_steps"] = c.flag("skip_prk_steps")
    return "fixed"


def _euler(c: Config, to: dict[str, Any]) -> str:
    to["sampler"] = "euler"
    c.one_of("interpolation_type", "linear")
    if c.get("prediction_type") == "v_prediction":
        c.one_of("timestep_type", "discrete", why="time ln(sigma) / 4 is not reproduced")
    return "fixed"


def _named(sampler: str) -> Callable[[Config, dict[str, Any]], str]:
    def own(c: Config, to: dict[str, Any]) -> str:
        to["sampler"] = sampler
        return "fixed"

    return own


def _dpm_multistep(c: Config, to: dict[str, Any]) -> str:
    sde = c.one_of("algorithm_type", "dpmsolver++", "sde-dpmsolver++") == "sde-dpmsolver++"
    order = c.one_of("solver_order", 1, 2, 3)
    to["sampler"] = "dpmpp_3m" if order == 3 else "dpmpp_2m_sde" if sde else "dpmpp_2m"
    if order == 3:
        to["eta"] = 1.0 if sde else 0.0
    options = to["sampler_options"]
    if order == 1:
        options["order"] = 1
    kind = c.one_of("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2")
    options |= {"solver_type": kind if kind == "heun" else "midpoint", "lower_order_final": c.flag("lower_order_final"),
                "euler_at_final": c.flag("euler_at_final")}  # fmt: skip
    return _of_output(c)


def _dpm_singlestep(c: Config, to: dict[str, Any]) -> str:
    to["sampler"] = "dpmpp_2s"
    c.one_of("algorithm_type", "dpmsolver++")
    c.one_of("solver_order", 2)
    c.expect_unset("use_flow_sigmas")
    kind = c.one_of("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2")
    to["sampler_options"] |= {"solver_type": kind if kind == "heun" else "midpoint",
                              "lower_order_final": c.flag("lower_order_final")}  # fmt: skip
    return _of_output(c)


def _of_output(c: Config) -> str:
    return "learned_range" if c.get("variance_type") in ("learned", "learned_range") else "fixed"


def _unipc(c: Config, to: dict[str, Any]) -> str:
    to["sampler"] = "unipc"
    c.one_of("predict_x0", True)
    kind = c.one_of("solver_type", "bh1", "bh2", "midpoint", "heun", "logrho")
    to["sampler_options"] |= {"order": c.one_of("solver_order", 1, 2, 3), "solver_type": kind if kind == "bh1" else "bh2",
                              "lower_order_final": c.flag("lower_order_final")}  # fmt: skip
    return "fixed"


def _deis(c: Config, to: dict[str, Any]) -> str:
    to["sampler"] = "deis"
    c.one_of("algorithm_type", "deis", "dpmsolver", "dpmsolver++")
    c.one_of("solver_type", "logrho", "midpoint", "heun", "bh1", "bh2")
    to["sampler_options"] |= {
        "order": c.one_of("solver_order", 1, 2, 3),
        "lower_order_final": c.flag("lower_order_final"),
    }
    return "fixed"


def _lcm(c: Config, to: dict[str, Any]) -> str:
    to["sampler"] = "lcm"
    to["sampler_options"] |= {"original_steps": c.integer("original_inference_steps", 1),
                              "timestep_scaling": c.number("timestep_scaling")}  # fmt: skip
    return "fixed"


_OWN: dict[str, Callable[[Config, dict[str, Any]], str]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _named("euler_ancestral"),
    "HeunDiscreteScheduler": _named("heun"),
    "LMSDiscreteScheduler": _named("lms"),
    "DPMSolverMultistepScheduler": _dpm_multistep,
    "DPMSolverSinglestepScheduler": _dpm_singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "LCMScheduler": _lcm,
}


def _score_sde(c: Config) -> Scheduler:
    if c.number("sampling_eps") != 1e-5:
        raise OptionError(
            f"scheduler.sampling_eps: expected 1e-05, got {c.get('sampling_eps')!r}: this is not reproduced"
        )
    schedule = {"name": "ve", "sigma_min": c.number("sigma_min"), "sigma_max": c.number("sigma_max")}
    defaults = {
        "compat": "diffusers", "sampler": "pc", "clip": "none", "steps": c.integer("num_train_timesteps", 1),
        "sampler_options": {"snr": c.number("snr"), "inner_steps": c.integer("correct_steps")},
    }  # fmt: skip
    return Scheduler(c.name, schedule, "score", "fixed", "sigma", 1.0, defaults)


def _flow_match(c: Config) -> Scheduler:
    c.expect_unset("use_dynamic_shifting", "invert_sigmas", "shift_terminal", "stochastic_sampling", *SIGMAS)
    T, shift = c.integer("num_train_timesteps", 1), c.number("shift")
    defaults: dict[str, Any] = {"compat": "diffusers", "sampler": "euler", "clip": "none"}
    if shift != 1:
        defaults["sampler_options"] = {"shift": shift}
    return Scheduler(c.name, {"name": "flow", "t_min": 1 / T}, "flow", "fixed", None, float(T), defaults)


def _edm(c: Config) -> Scheduler:
    c.one_of("prediction_type", "epsilon", why="its other preconditioning is not reproduced")
    grid = c.one_of("sigma_schedule", "karras", "exponential")
    schedule = {"name": "edm", **{k: c.number(k) for k in ("sigma_min", "sigma_max", "sigma_data")}}
    options: dict[str, Any] = {"final_sigma": c.one_of("final_sigmas_type", "zero", "sigma_min")}
    if grid == "karras":
        options["rho"] = c.number("rho")
    defaults = {"compat": "diffusers", "sampler": "euler", "clip": "none", "grid": grid, "sampler_options": options}
    return Scheduler(c.name, schedule, "edm", "fixed", None, 1.0, defaults)
