"""The readable truth: DDPM and DDIM in PyTorch and numpy, written from the papers, with their equation numbers.

schedule (alpha_bar, forward process, posterior), unet (the epsilon network), losses, samplers (plain loops), step (the
float64 executor of a StepRow) and philox (the engine's random numbers). Slow on purpose, and free of compiled code.
"""

from . import losses, philox, samplers, schedule, step, unet
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
    "guided",
    "losses",
    "philox",
    "samplers",
    "schedule",
    "step",
    "timesteps",
    "unet",
]
