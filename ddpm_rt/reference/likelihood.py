"""Likelihoods in bits per dimension: the variational bound and the probability flow, by PyTorch alone.

The bound: Ho et al. 2020 (2006.11239) eq. 5, 7 and 13, with the shortened chains and learned variances of Nichol &
Dhariwal 2021 (2102.09672). The flow: Song et al. 2021 (2011.13456) eq. 39, written as dx = eps dsigma for x / alpha
(Karras et al. 2206.00364).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .losses import discretised_gaussian_nll, gaussian_kl, learned_log_variance
from .schedule import Schedule

Network = Callable[[Tensor, int], Tensor]  # (x_t [B, ...], timestep of the full schedule) -> eps [B, ...], or eps and v


def bound_terms(
    network: Network,
    schedule: Schedule,
    times: Sequence[int],
    x0: Tensor,
    noise: Callable[[int], Tensor],
    *,
    variance: str = "fixed_small",
    clip: bool = True,
    only: Sequence[int] | None = None,
) -> dict[int, Tensor]:
    """Bits per dimension of x0 [B, ...] in [-1, 1], 8-bit levels: {index into `times`: [B]}, and {-1: L_T}.

    times: the chain's timesteps, increasing; its betas are those that keep alpha_bar there (Nichol & Dhariwal eq. 19).
    noise(t): eps [B, ...]. variance: "fixed_small", "fixed_large" or "learned_range" (twice the channels). `only`:
    these indices.
    """
    chain = Schedule(schedule.alpha_bar[list(times)])
    x0, found = x0.double(), {}
    for k in range(len(times)) if only is None else only:
        at = torch.full((len(x0),), k)
        x_t = chain.q_sample(x0, at, noise(times[k]).double()).float()
        out = network(x_t, times[k]).double()
        small = chain._at(chain.posterior_log_variance, at, x0)
        log_var = small
        if variance == "learned_range":
            out, v = out.chunk(2, dim=1)
            log_var = learned_log_variance(chain, v, at)
        elif variance == "fixed_large" and k > 0:
            log_var = chain._at(chain.betas.log(), at, x0)
        x0_hat = chain.predict_x0(x_t.double(), at, out)
        mean = chain.posterior_mean(x0_hat.clamp(-1, 1) if clip else x0_hat, x_t.double(), at)
        if k == 0:
            nats = discretised_gaussian_nll(x0, mean, log_var.expand_as(x0))
        else:
            nats = gaussian_kl(chain.posterior_mean(x0, x_t.double(), at), small, mean, log_var)
        found[k] = nats.flatten(1).mean(1) / math.log(2)
    ab, zero = chain.alpha_bar[-1], torch.zeros((), dtype=torch.float64)
    found[-1] = gaussian_kl(ab.sqrt() * x0, torch.log1p(-ab), zero, zero).flatten(1).mean(1) / math.log(2)
    return found


def flow_bits(
    eps: Callable[[Tensor, float], Tensor], sigmas: Sequence[float], x: Tensor, probe: Tensor, prior_std: float
) -> Tensor:
    """-log2 density of x [B, ...] per dimension, x = x_0 / alpha under sigmas[0] of noise.  -> [B]

    eps(x, sigma): the noise in x = x_0 + sigma eps, differentiable. sigmas: increasing. probe [B, ...]: v of v' J v, by
    the exact vector-Jacobian product. Heun's steps; the divergence by the trapezium rule over log sigma.
    """

    def at(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        out = eps(x, sigma)
        (product,) = torch.autograd.grad((out * probe).sum(), x)
        return out.detach(), (product * probe).flatten(1).sum(1)

    change = torch.zeros(len(x), dtype=x.dtype)
    for a, b in itertools.pairwise(sigmas):
        slope, divergence = at(x, a)
        slope_there, divergence_there = at(x + (b - a) * slope, b)
        x = x + 0.5 * (b - a) * (slope + slope_there)
        change = change + 0.5 * math.log(b / a) * (a * divergence + b * divergence_there)
    prior = (0.5 * (x / prior_std).square() + 0.5 * math.log(2 * math.pi) + math.log(prior_std)).flatten(1).sum(1)
    return (prior - change) / (x[0].numel() * math.log(2))
