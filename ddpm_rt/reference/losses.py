"""Training losses of the epsilon parameterisation.

L_simple: DDPM (2006.11239) eq. 14. The weighted bound: DDPM eq. 8 and 12. Min-SNR: Hang et al. 2023 (2303.09556).
The hybrid loss with learned variance: Nichol & Dhariwal 2021 (2102.09672) eq. 15 and 16.
All return one loss per image, a mean over its elements, so that a weight per timestep can act on it.
"""

from __future__ import annotations

import math

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
    snr = schedule.snr
    return torch.where(snr > gamma, gamma / snr, torch.ones_like(snr))  # SNR may be 0, where the limit is 1


def bound_weight(schedule: Schedule) -> Tensor:
    """lambda_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)), DDPM eq. 12, with sigma_t^2 = beta_t.  -> [T]"""
    beta, ab = schedule.betas, schedule.alpha_bar
    return beta / (2 * (1 - beta) * (1 - ab))


WEIGHTS = {"simple": simple_weight, "min_snr": min_snr_weight, "bound": bound_weight}


def mean_from_eps(schedule: Schedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """mu_theta(x_t, t) = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t), DDPM eq. 11.  -> [B, ...]"""
    beta, ab = schedule.betas, schedule.alpha_bar
    noise = schedule._at(beta / (1 - ab).sqrt(), t, x_t) * eps
    return (x_t - noise) / schedule._at((1 - beta).sqrt(), t, x_t)


def mean_loss(schedule: Schedule, mean: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """|mu~_t(x_t, x_0) - mean|^2 / (2 sigma_t^2), DDPM eq. 8, with sigma_t^2 = beta_t.  -> [B]"""
    error = per_image_mse(schedule.posterior_mean(x0, x_t, t), mean)
    return error / (2 * schedule.betas.to(t.device)[t].to(error.dtype))


def learned_log_variance(schedule: Schedule, v: Tensor, t: Tensor) -> Tensor:
    """log sigma^2 = f log beta_t + (1 - f) log beta~_t, f = (v + 1)/2, Nichol & Dhariwal eq. 15.  [B, ...] -> [B, ...]"""
    f = (v + 1) / 2
    return f * schedule._at(schedule.betas.log(), t, v) + (1 - f) * schedule._at(schedule.posterior_log_variance, t, v)


def gaussian_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N(mean1, e^log_var1) | N(mean2, e^log_var2)) of every element, in nats."""
    gap = (mean1 - mean2).square() * (-log_var2).exp()
    return 0.5 * (log_var2 - log_var1 + (log_var1 - log_var2).exp() - 1 + gap)


def discretised_gaussian_nll(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log p(x0) of 8-bit pixels scaled to [-1, 1], DDPM eq. 13, in nats per element.

    Each pixel owns 1/255 to either side; the darkest and the brightest own the whole tail.
    """

    def cdf(x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf((x - mean) * (-0.5 * log_var).exp() / math.sqrt(2)))

    upper = torch.where(x0 > 0.999, torch.ones_like(x0), cdf(x0 + 1 / 255))
    lower = torch.where(x0 < -0.999, torch.zeros_like(x0), cdf(x0 - 1 / 255))
    return -(upper - lower).clamp(min=1e-12).log()


def vlb_term(schedule: Schedule, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """L_t of the variational bound (DDPM eq. 5) for a network with learned variance, in bits per element.

    output [B, 2C, ...]: the noise, then v. L_0 at index 0, KL(q(x_{t-1}|x_t,x_0) | p) elsewhere.  -> [B]
    """
    eps, v = output.chunk(2, dim=1)
    log_var = learned_log_variance(schedule, v, t)
    mean = mean_from_eps(schedule, x_t, t, eps)
    true_log_var = schedule._at(schedule.posterior_log_variance, t, x_t)
    kl = gaussian_kl(schedule.posterior_mean(x0, x_t, t), true_log_var, mean, log_var)
    nll = discretised_gaussian_nll(x0, mean, log_var)
    first = (t == 0).reshape(-1, *[1] * (x0.ndim - 1))
    return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)


def hybrid_loss(schedule: Schedule, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """L_simple + 0.001 L_vlb, Nichol & Dhariwal eq. 16. L_vlb is a sum over T steps, of which one is drawn: T L_t.

    The bound trains the variance alone: the noise half is detached inside it (their section 3.1).  -> [B]
    """
    mean, v = output.chunk(2, dim=1)
    bound = vlb_term(schedule, torch.cat([mean.detach(), v], dim=1), x0, x_t, t)
    return per_image_mse(mean, eps) + 0.001 * len(schedule) * bound
