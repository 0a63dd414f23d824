"""The keys of diffusers' scheduler classes with their defaults (diffusers 0.42), and a configuration read by them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..arrays import integer, number
from ..errors import OptionError

log = logging.getLogger("ddpm_rt.export")

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}

_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_WIDE = {"beta_start": 0.00085, "beta_end": 0.012}
_SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SHIFTING = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_SNR = {"rescale_betas_zero_snr": False}
_FINAL = {"final_sigmas_type": "zero"}
_DPM = (
    _BETAS
    | _THRESHOLD
    | SIGMAS
    | _SHIFTING
    | _FLOW
    | _FINAL
    | {
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "lambda_min_clipped": float("-inf"),
        "variance_type": None,
    }
)

#: Keys of each class, with their defaults.
CLASSES: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _BETAS | _CLIPPED | _THRESHOLD | _LEADING | _SNR | {"variance_type": "fixed_small"},
    "DDIMScheduler": _BETAS | _CLIPPED | _THRESHOLD | _LEADING | _SNR | {"set_alpha_to_one": True},
    "PNDMScheduler": _BETAS | _LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": _BETAS | SIGMAS | _SPACED | _SNR | _FINAL
    | {"interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete"},
    "EulerAncestralDiscreteScheduler": _BETAS | _SPACED | _SNR,
    "HeunDiscreteScheduler": _BETAS | _WIDE | SIGMAS | _SPACED | _CLIPPED | {"clip_sample": False},
    "LMSDiscreteScheduler": _BETAS | SIGMAS | _SPACED,
    "DPMSolverMultistepScheduler": _DPM | _SPACED | _SNR | {"euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": _DPM | {"lower_order_final": False},
    "UniPCMultistepScheduler": _BETAS | _THRESHOLD | SIGMAS | _SHIFTING | _FLOW | _FINAL | _SPACED | _SNR
    | {
        "solver_order": 2, "predict_x0": True, "solver_type": "bh2", "lower_order_final": True, "disable_corrector": [],
        "solver_p": None, "sigma_min": None, "sigma_max": None, "shift_terminal": None,
    },
    "DEISMultistepScheduler": _BETAS | _THRESHOLD | SIGMAS | _SHIFTING | _FLOW | _SPACED
    | {"solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True},
    "LCMScheduler": _BETAS | _WIDE | _CLIPPED | _THRESHOLD | _LEADING | _SNR
    | {
        "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": True, "original_inference_steps": 50,
        "timestep_scaling": 10.0,
    },
    "ScoreSdeVeScheduler": {
        "num_train_timesteps": 2000, "snr": 0.15, "sigma_min": 0.01, "sigma_max": 1348.0, "sampling_eps": 1e-5,
        "correct_steps": 1,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000, "shift": 1.0, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
        "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None, "stochastic_sampling": False,
        **_SHIFTING, **SIGMAS,
    },
    "EDMEulerScheduler": {
        "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "rho": 7.0, "final_sigmas_type": "zero",
    },
}  # fmt: skip
CLASSES["DDPMParallelScheduler"] = CLASSES["DDPMScheduler"]
CLASSES["DDIMParallelScheduler"] = CLASSES["DDIMScheduler"]

#: Keys that configurations carry from other classes or from older releases, and that diffusers' own loader ignores.
_CARRIED = {"tensor_format", "timestep_values", "solver_p", "eta", "scale_factors", "upscale_mode", "tau_func",
            "predictor_order", "corrector_order"}.union(*CLASSES.values())  # fmt: skip


class Config:
    """A configuration with its class's defaults; every error names the key."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise OptionError(
                f"scheduler: expected a mapping such as a scheduler_config.json, got {type(config).__name__}"
            )
        self.name = config.get("_class_name")
        if not isinstance(self.name, str) or self.name not in CLASSES:
            raise OptionError(f"scheduler._class_name: expected one of {', '.join(CLASSES)}, got {self.name!r}")
        known = CLASSES[self.name]
        unknown = [k for k in config if k not in known and not str(k).startswith("_")]
        if config.get("predict_epsilon") is False:
            self.fail("predict_epsilon", "it written as prediction_type sample", False)
        strange = [k for k in unknown if k not in _CARRIED | {"predict_epsilon"}]
        if strange:
            raise OptionError(
                f"scheduler.{strange[0]}: expected a key of {self.name} ({', '.join(known)}), got an unknown one"
            )
        if unknown:
            log.warning("scheduler: %s has no %s: ignored, as by diffusers", self.name, ", ".join(sorted(unknown)))
        self.values = known | {k: config[k] for k in known if k in config}

    def fail(self, key: str, expected: str, got: Any, why: str = "") -> None:
        raise OptionError(f"scheduler.{key}: expected {expected}, got {got!r}{': ' if why else ''}{why}")

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def number(self, key: str) -> float:
        return number(self.values[key], f"scheduler.{key}")

    def integer(self, key: str, least: int = 0, most: int = 65536) -> int:
        return integer(self.values[key], f"scheduler.{key}", least, most)

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if value is not None and not isinstance(value, bool):
            self.fail(key, "true or false", value)
        return bool(value)

    def one_of(self, key: str, *allowed: Any, why: str = "") -> Any:
        value = self.values[key]
        if value not in allowed:
            self.fail(
                key, f"one of {', '.join(map(str, allowed))}" if len(allowed) > 1 else str(allowed[0]), value, why
            )
        return value

    def expect_unset(self, *keys: str) -> None:
        for key in keys:
            if key in self.values and self.values[key] not in (None, False, []):
                self.fail(key, f"{CLASSES[self.name][key]}", self.values[key], "this is not reproduced")
