"""The readable truth: DDPM and DDIM in PyTorch and numpy, written from the papers, with their equation numbers.

schedule (alpha_bar, forward process, posterior), unet (the epsilon network), losses, samplers (DDPM and DDIM as plain loops),
likelihood (bits per dimension), levels, denoise, solvers, solvers_noisy and run (every sampler on every noise model), step (the float64 executor of a StepRow)
and philox (the engine's random numbers). Slow on purpose, and free of compiled code.
"""

from . import denoise, levels, likelihood, losses, philox, run, samplers, schedule, solvers, solvers_noisy, step, unet
from .samplers import ddim, ddpm, guided
from .schedule import Schedule, timesteps
from .unet import CIFAR10_DDPM, UNet, UNetConfig

__all__ = [
    "CIFAR10_DDPM",
    "Schedule",
    "UNet",
    "UNetConfig",
    "ddim",
    "ddpm",
    "denoise",
    "guided",
    "levels",
    "likelihood",
    "losses",
    "philox",
    "run",
    "samplers",
    "schedule",
    "solvers",
    "solvers_noisy",
    "step",
    "timesteps",
    "unet",
]
