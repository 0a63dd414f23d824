"""What makes no sense is refused with its reason; the lists and the page agree."""

from __future__ import annotations

import pytest
from conftest import ROOT

import ddpm_rt
from ddpm_rt import tables


@pytest.mark.parametrize(
    ("options", "why"),
    [
        # options that another sampler has
        ({"sampler": "ddim", "sampler_options": {"order": 3}}, "order: expected it unset with sampler ddim"),
        ({"sampler": "unipc", "sampler_options": {"s_churn": 1.0}}, "s_churn: .*other samplers"),
        ({"sampler": "heun", "sampler_options": {"snr": 0.1}}, "snr"),
        ({"sampler": "lcm", "sampler_options": {"final_sigma": "zero"}}, "final_sigma"),
        ({"sampler": "langevin", "sampler_options": {"final_sigma": "zero"}}, "final_sigma"),
        ({"sampler": "dpmpp_2s", "sampler_options": {"lower_order_final": True}}, "only diffusers pairs"),
        # ranges and types
        ({"sampler": "unipc", "sampler_options": {"order": 4}}, "order: expected 1 to 3"),
        ({"sampler": "lms", "sampler_options": {"order": 5}}, "order: expected int"),
        ({"sampler": "unipc", "sampler_options": {"order": 2.5}}, "order: expected int"),
        ({"sampler": "unipc", "sampler_options": {"order": "three"}}, "order: expected int"),
        ({"sampler": "unipc", "sampler_options": {"solver_type": "midpoint"}}, "bh1 or bh2"),
        ({"sampler": "dpmpp_2m", "sampler_options": {"solver_type": "bh1"}}, "midpoint or heun"),
        ({"sampler": "dpmpp_2m", "sampler_options": {"solver_type": "euler"}}, "one of midpoint"),
        ({"sampler": "dpmpp_2m", "sampler_options": {"lower_order_final": 1}}, "expected bool"),
        ({"sampler": "dpmpp_2m", "sampler_options": {"unknown": 1}}, "unknown: expected one of"),
        ({"sampler": "heun", "sampler_options": {"s_churn": -1.0}}, "s_churn: expected float"),
        ({"sampler": "heun", "sampler_options": {"s_noise": 1.1}}, "unset without s_churn"),
        ({"sampler": "heun", "sampler_options": {"s_churn": 1.0, "s_tmin": 5.0, "s_tmax": 1.0}}, "s_tmax"),
        ({"sampler": "langevin", "sampler_options": {"inner_steps": 0}}, "inner_steps"),
        ({"sampler": "pndm", "steps": 3, "sampler_options": {"skip_prk_steps": False}}, "Runge-Kutta"),
        # eta, variance, clip
        ({"sampler": "unipc", "eta": 0.5}, "it adds no noise"),
        ({"sampler": "ddpm", "eta": 0.5}, "its noise is set by variance"),
        ({"sampler": "ddim", "eta": 1.5}, r"eta: expected a number in \[0, 1\]"),
        ({"sampler": "heun", "variance": "fixed_large"}, "only ddpm"),
        ({"sampler": "ddpm", "variance": "learned_range"}, "network's output has variance fixed"),
        ({"sampler": "ddpm", "variance": "learned", "network_variance": "learned_range"}, "network's output has variance"),
        ({"sampler": "deis", "clip": "keep_eps"}, "would change nothing"),
        ({"sampler": "lms", "clip": "keep_eps"}, "would change nothing"),
        ({"sampler": "pc", "clip": "rederive"}, "clip: expected none"),
        # grids
        ({"sampler": "ddim", "grid": "leading", "sampler_options": {"rho": 7}}, "rho: expected it unset with grid leading"),
        ({"sampler": "ddim", "grid": "exponential", "sampler_options": {"rho": 7}}, "rho: .*karras, edm"),
        ({"sampler": "ddim", "grid": "trailing", "sampler_options": {"steps_offset": 1}}, "steps_offset"),
        ({"sampler": "ddim", "sampler_options": {"steps_offset": 500}}, "steps_offset: expected at most 99"),
        ({"sampler": "ddim", "grid": "karras", "sampler_options": {"sigma_max": 500.0}}, "what the schedule has"),
        ({"sampler": "ddim", "grid": "karras", "sampler_options": {"sigma_min": 1e-5}}, "what the schedule has"),
        ({"sampler": "ddim", "grid": "karras", "sampler_options": {"sigma_min": 2.0, "sigma_max": 1.0}}, "less than sigma_max"),
        ({"sampler": "ddim", "grid": "leading", "sampler_options": {"final_sigma": "sigma_min"}}, "already what final_sigma"),
        ({"sampler": "ddim", "grid": "10,x"}, "grid: expected one of"),
        ({"sampler": "ddim", "grid": "500,501", "steps": None}, "section 1"),
        ({"sampler": "ddim", "grid": "ddim20", "steps": 10}, "steps: expected 20"),
        ({"sampler": "ddim", "grid": "ddim300", "steps": None}, "integer stride"),
        ({"sampler": "unipc", "steps": 1000}, "one less than the schedule's timesteps"),
        ({"sampler": "lcm", "steps": 60}, "original_steps"),
        ({"sampler": "ddim", "grid": "karras", "sampler_options": {"timesteps": [5, 3]}}, "grid: expected it unset"),
        ({"sampler": "ddim", "sampler_options": {"timesteps": [5, 3], "sigmas": [2.0, 1.0]}, "steps": None}, "got both"),
        ({"sampler": "ddim", "sampler_options": {"timesteps": [5, 3]}}, "steps: expected 2"),
        ({"sampler": "ddim", "sampler_options": {"timesteps": [3, 5]}, "steps": None}, "strictly decreasing"),
        ({"sampler": "ddim", "sampler_options": {"timesteps": [1000, 5]}, "steps": None}, "timesteps: expected times"),
        ({"sampler": "ddim", "sampler_options": {"sigmas": [1.0, 0.0]}, "steps": None}, "sigmas: expected levels"),
        ({"sampler": "ddim", "sampler_options": {"timesteps": []}, "steps": None}, "timesteps: expected list"),
        ({"sampler": "heun", "sampler_options": {"spacing": "leading"}}, "spacing"),
        ({"sampler": "heun", "grid": "karras", "schedule": "vp", "sampler_options": {"time_rounding": "nearest"}}, "continuous time"),
        # schedules and parameterisations
        ({"sampler": "ddim", "grid": "trailing", "schedule": "vp"}, "grid: expected one for continuous time"),
        ({"sampler": "ddim", "grid": "uniform", "schedule": "ve"}, "does not reach it"),
        ({"sampler": "heun", "grid": "karras", "schedule": "flow", "prediction": "flow"}, "sigma_max: expected a finite number"),
        ({"sampler": "heun", "schedule": "flow", "prediction": "flow", "sampler_options": {"s_churn": 3.0}}, "flow schedule"),
        ({"sampler": "dpmpp_2m", "sampler_options": {"shift": 3.0}}, "it shifts flows"),
        ({"sampler": "dpmpp_2m", "schedule": "vp", "sampler_options": {"lambda_min": -5.0}}, "choose the schedule's range"),
        ({"sampler": "lcm", "schedule": "edm", "prediction": "consistency", "sampler_options": {"timestep_scaling": 10.0}},
         "counts training timesteps"),
        ({"sampler": "ddim", "prediction": "edm"}, "schedule of kind edm only"),
        ({"sampler": "ddim", "prediction": "mean", "schedule": "vp"}, "no previous timestep"),
        ({"sampler": "ddim", "prediction": "mean", "grid": "karras"}, "integer timesteps"),
        ({"sampler": "pc", "prediction": "v", "clip": "none"}, "not proportional to the score"),
        ({"sampler": "ddim", "time": "t"}, "time: expected one of index"),
        ({"sampler": "ddim", "schedule": "vp", "time": "index"}, "time: expected one of t"),
        ({"sampler": "ddim", "time_scale": 0.0}, "above 0"),
        ({"sampler": "ddim", "schedule": {"name": "ve", "sigma_min": 5.0, "sigma_max": 1.0}}, "sigma_max"),
        ({"sampler": "ddim", "schedule": {"name": "vp", "sigma_min": 1.0}}, "expected among beta_min"),
        ({"sampler": "ddim", "schedule": {"name": "vp", "t_min": 2.0}}, "t_min"),
        ({"sampler": "euler", "schedule": {"alpha_bar": [0.9, 0.5, 0.0]}, "prediction": "v", "steps": None, "grid": "trailing"},
         "zero terminal SNR"),
        ({"sampler": "ddim", "schedule": {"alpha_bar": [0.9, 0.5, 0.0]}, "steps": None, "grid": "trailing"}, "zero terminal SNR"),
        ({"sampler": "pndm", "schedule": {"alpha_bar": [0.9, 0.5, 0.0]}, "prediction": "v", "steps": None, "grid": "trailing"},
         "zero terminal SNR"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_reason(options, why):
    with pytest.raises(ddpm_rt.OptionError, match=why):
        ddpm_rt.rows(**{"steps": 10, **options})


def test_the_lists():
    by_name = {s.name: s for s in ddpm_rt.samplers()}
    assert list(by_name) == [
        "ddpm", "ddim", "pndm", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "euler", "euler_ancestral", "heun",
        "lms", "deis", "lcm", "langevin", "pc",
    ]  # fmt: skip
    known = {g.name for g in ddpm_rt.grids()}
    for s in by_name.values():
        assert "arXiv" in s.citation or "k-diffusion" in s.citation
        assert s.default_grid in known and s.order >= 0
        for option in s.options:
            assert option.help and option.type and option.default
    assert {o.name: o.default for o in by_name["unipc"].options} == {
        "final_sigma": "zero", "order": "2", "solver_type": "bh1", "lower_order_final": "True",
    }  # fmt: skip


def test_defaults_are_what_the_lists_say():
    """Every listed default, given by itself, changes nothing."""
    special = {"langevin": {"clip": "none"}, "pc": {"clip": "none"}}
    for s in ddpm_rt.samplers():
        base = {"sampler": s.name, "steps": 4, **special.get(s.name, {})}
        plain = ddpm_rt.rows(**base)
        assert (ddpm_rt.rows(**base, grid=s.default_grid) == plain).all()
        if s.default_eta is not None:
            assert (ddpm_rt.rows(**base, eta=s.default_eta) == plain).all()
        for o in s.options:
            if o.name in ("s_tmin", "s_tmax", "s_noise") or (s.name == "dpmpp_2s" and o.name == "lower_order_final"):
                continue
            value = {"True": True, "False": False}.get(o.default, o.default)
            if o.type in ("int", "float") and isinstance(value, str):
                value = int(value) if o.type == "int" else float(value)
            assert (ddpm_rt.rows(**base, sampler_options={o.name: value}) == plain).all(), (s.name, o.name)


def test_the_page_has_the_lists():
    page = (ROOT / "docs" / "samplers.md").read_text()
    assert tables.markdown() in page  # python -m ddpm_rt.tables
