"""Any sampler of `solvers` by name, in the conventions that the engine has without `compat`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import solvers, solvers_noisy
from .denoise import Denoiser
from .levels import EDM, VE, Discrete, Flow, Level, levels
from .solvers import Noise

UNIT = ("euler", "euler_ancestral", "heun", "lms", "langevin")
#: grid, steps, and what `levels` is told, where the caller says nothing.
DEFAULT_GRID = {
    **dict.fromkeys(("ddpm", "ddim", "pndm"), "leading"),
    **dict.fromkeys(("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "deis"), "uniform"),
    **dict.fromkeys(("euler", "euler_ancestral", "heun", "lms"), "karras"),
    "lcm": "lcm",
    "langevin": "exponential",
    "pc": "linspace",
}
_GRID_OPTIONS = ("sigma_min", "sigma_max", "rho", "shift", "lambda_min", "timesteps", "sigmas")


def initial_sigma(denoiser: Denoiser, first: Level, is_unit: bool) -> float:
    """x_T = this times unit noise: the prior has variance 1 where the noise model preserves it, sigma^2 where it explodes."""
    if isinstance(denoiser.model, (VE, EDM)):
        return first.sigma
    return 1 / first.alpha if is_unit else 1.0


def sample(
    sampler: str,
    denoiser: Denoiser,
    steps: int,
    unit_noise: Tensor,
    noise: Noise,
    *,
    grid: str | None = None,
    eta: float | None = None,
    variance: str = "fixed_small",
    **options: Any,
) -> Tensor:
    """x_0 [C, ...] of one sample. unit_noise [C, ...] is multiplied by the sampler's initial sigma; noise(row) as in `solvers`.

    options: those of `ddpm_rt.samplers()` and `ddpm_rt.grids()` by the same names.
    """
    model, is_flow = denoiser.model, isinstance(denoiser.model, Flow)
    if grid is None:
        grid = DEFAULT_GRID[sampler]
        if model.native_unit and grid in ("leading", "lcm", "uniform"):
            grid = "karras"
        elif is_flow or (not isinstance(model, Discrete) and grid in ("leading", "lcm")):
            grid = "uniform"
    placing = {k: options.pop(k) for k in _GRID_OPTIONS if k in options}
    visited = levels(
        model,
        grid,
        steps,
        final=options.pop("final_sigma", None),
        offset=options.pop("steps_offset", 0),
        original=options.pop("original_steps", 50),
        **placing,
    )
    is_unit = sampler in UNIT and not is_flow
    if is_unit:
        native = {level.rel: level for level in visited}
        visited = [Level(1.0, level.rel, level.t) for level in visited]

        def denoise(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            at = native.get(level.sigma) or model.at_rel(level.sigma)
            return denoiser(at.alpha * x, at)
    else:
        denoise = denoiser
    x = initial_sigma(denoiser, native[visited[0].sigma] if is_unit else visited[0], is_unit) * unit_noise

    def call(loop: Any, **more: Any) -> Tensor:
        return loop(denoise, visited, x, noise, **{**more, **options})

    if sampler == "ddpm":
        return call(solvers.ddpm, variance=variance, read=lambda: denoiser.variance)
    if sampler == "ddim":
        return call(solvers.ddim, eta=eta or 0.0)
    if sampler == "euler_ancestral":
        return call(solvers.ddim, eta=1.0 if eta is None else eta)
    if sampler == "pndm":
        return call(solvers.pndm, model=model)
    if sampler in ("dpmpp_2m", "dpmpp_3m"):
        return call(solvers.dpmpp_multistep, order=int(sampler[6]), eta=eta or 0.0)
    if sampler == "dpmpp_2m_sde":
        return call(solvers.dpmpp_multistep, order=2, eta=1.0 if eta is None else eta)
    if sampler == "dpmpp_2s":
        return call(solvers.dpmpp_2s, model=model, eta=eta or 0.0)
    if sampler in ("heun", "euler"):

        def place(sigma: float) -> Level:
            return Level(1.0, sigma, model.at_rel(sigma).t)

        return call(solvers_noisy.karras, place=place, is_heun=sampler == "heun", is_flow=is_flow)
    if sampler == "lms":
        return call(solvers.lms, is_flow=is_flow)
    if sampler == "lcm":
        if not isinstance(model, Discrete):
            options.setdefault("timestep_scaling", 0.0)
        least = model.sigma_min if denoiser.prediction == "consistency" else 0.0
        return call(solvers_noisy.lcm, sigma_min=least)
    if sampler == "langevin":
        if options.get("step_size") == "ncsnv2":
            options = {"step_lr": 6.2e-6, "inner_steps": 5, **options}
        if "denoise" in options:
            options["denoise_last"] = options.pop("denoise")
        return call(solvers_noisy.langevin)
    if sampler == "pc":
        if "inner_steps" in options:
            options["corrector_steps"] = options.pop("inner_steps")
        return call(solvers_noisy.predictor_corrector)
    return call({"unipc": solvers.unipc, "deis": solvers.deis}[sampler])


def twin_of(kind: str, **numbers: float) -> Any:
    """A noise model by the name that `ddpm_rt.rows(schedule=...)` has for it."""
    from .levels import VP, SubVP

    return {"vp": VP, "sub_vp": SubVP, "ve": VE, "flow": Flow, "edm": EDM}[kind](**numbers)
