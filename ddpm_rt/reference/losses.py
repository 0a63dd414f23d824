"""Training losses of the epsilon parameterisation.

L_simple: DDPM (2006.11239) eq. 14. The weighted bound: DDPM eq. 12. Min-SNR: Hang et al. 2023 (2303.09556).
All return one loss per image, a mean over its elements, so that a weight per timestep can act on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schedule import Schedule


def per_image_mse(a: Tensor, b: Tensor) -> Tensor:
    """[B, ...] x 2 -> [B]"""
    return (a - b).square().flatten(1).mean(1)


def simple_weight(schedule: Schedule) -> Tensor:
    """L_simple, DDPM eq. 14: every timestep counts the same.  -> [T]"""
    return torch.ones_like(schedule.alpha_bar)


def min_snr_weight(schedule: Schedule, gamma: float = 5.0) -> Tensor:
    """Hang et al. section 3.4 for an epsilon network: min(SNR, gamma) / SNR.  -> [T]"""
    return schedule.snr.clamp(max=gamma) / schedule.snr


WEIGHTS = {"simple": simple_weight, "min_snr": min_snr_weight}
