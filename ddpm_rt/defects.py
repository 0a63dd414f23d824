"""The defects of other projects that `compat` and `scheduler` reproduce, as warnings. docs/samplers.md lists them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

_LEAST_LOG_SNR = -5.1  # where `lambda_min` stands without compat
_DPM = ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "deis")


def found(settings: Mapping[str, Any], schedule: Mapping[str, Any], prediction: str) -> list[str]:
    """One sentence for each defect that a call with these settings meets.

    settings: sampler, compat, steps, grid, eta, variance, threshold, sampler_options, as far as given; schedule, prediction: of
    `Engine.info()`.
    """
    compat = settings.get("compat")
    if compat == "diffusers":
        return _diffusers(settings, schedule, prediction)
    if compat == "guided-diffusion":
        return _guided_diffusion(settings, int(schedule["T"]))
    if compat == "k-diffusion" and settings["sampler"] == "dpmpp_3m":
        return [_third_order("k-diffusion")]
    return []


def _third_order(project: str) -> str:
    return f"{project}: the third order multistep formula has half of the parabola's last term, and order 2"


def _diffusers(given: Mapping[str, Any], schedule: Mapping[str, Any], prediction: str) -> list[str]:
    sampler, steps = given["sampler"], given.get("steps")
    options = given.get("sampler_options") or {}
    T, is_discrete = int(schedule["T"]), schedule["kind"] == "discrete"
    grid = given.get("grid") or ("leading" if sampler in ("ddpm", "ddim", "pndm") else "linspace")
    variance = given.get("variance") or "fixed_small"
    final = options.get("final_sigma") or ("sigma_min" if sampler in ("pndm", "deis") else "zero")
    offset = options.get("steps_offset") or 0
    uneven = grid == "trailing" and steps is not None and T % steps != 0
    out = []
    if sampler in ("ddim", "pndm") and ((grid == "linspace" and steps != 1) or uneven):
        out.append(f"diffusers: {sampler} steps to t - T // n, which with spacing {grid} is not the next timestep")
    ends_late = (grid == "trailing" and steps != T) or (grid == "leading" and offset > 0)
    if sampler == "ddpm" and variance in ("fixed_large", "learned_range") and ends_late:
        out.append(f"diffusers: ddpm adds noise of variance {variance} in its last step, whose timestep is not 0")
    if sampler == "pndm" and prediction == "v":
        out.append("diffusers: pndm combines the raw v outputs of several timesteps, not the eps they stand for")
    if sampler == "pndm" and final == "sigma_min" and grid == "leading" and offset == 0:
        out.append("diffusers: pndm's last step, to alpha_bar_0, does nothing with leading timesteps")
    if sampler == "euler" and (options.get("s_churn") or 0) > 0:
        out.append("diffusers: euler adds its churn after the evaluation that it belongs to")
    if sampler == "dpmpp_3m":
        sign = ", and its SDE form a wrong sign" if (given.get("eta") or 0) > 0 else ""
        out.append(_third_order("diffusers") + sign)
    last = schedule["alpha_bar_last"]
    log_snr = 0.5 * (math.log(last) - math.log1p(-last)) if 0 < last < 1 else -math.inf
    if is_discrete and sampler.startswith("dpmpp") and log_snr < _LEAST_LOG_SNR and options.get("lambda_min") is None:
        out.append("diffusers: the cosine schedule starts where log(alpha / sigma) is "
                   f"{log_snr:.3g}; lambda_min_clipped -5.1 avoids that")  # fmt: skip
    if sampler in ("unipc", "deis") and grid in ("karras", "exponential") and final == "sigma_min":
        out.append(f"diffusers: {sampler} repeats the last level of a sigma grid that ends at sigma_min")
    if sampler in _DPM and grid in ("karras", "exponential") and (options.get("time_rounding") or "none") == "none":
        how = "rounded" if grid == "karras" else "cut"
        out.append(
            f"diffusers: {sampler} with {grid} sigmas tells the network timesteps {how} to integers, beside levels that are not"
        )
    threshold = given.get("threshold")
    if threshold and threshold[1] < 1:
        out.append(f"diffusers: sample_max_value {threshold[1]:g} below 1 clamps x0 to it and then divides by it")
    if sampler == "pc":
        out.append("diffusers: ScoreSdeVe's corrector averages norms over the batch, which couples its images; here each image "
                   "has its own, as diffusers has for a batch of 1")  # fmt: skip
    return out


def _guided_diffusion(given: Mapping[str, Any], T: int) -> list[str]:
    counts = given.get("grid") or ("" if given["sampler"] == "ddim" else str(given.get("steps") or T))
    if not counts.replace(",", "").isdigit():
        return []
    sections = [int(c) for c in counts.split(",")]
    for i, count in enumerate(sections):
        size = T // len(sections) + (i < T % len(sections))
        at, stride = 0.0, (size - 1) / (count - 1) if count > 1 else 1.0
        for k in range(count):
            if round(at) != round(Fraction(k * (size - 1), max(1, count - 1))):
                what = f"timestep_respacing {counts} adds up a floating-point stride and visits neighbours of its timesteps"
                return [f"guided-diffusion: {what}"]
            at += stride
    return []
