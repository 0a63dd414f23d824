"""The variational bound of a discrete chain, term by term: Ho et al. 2020 (2006.11239) eq. 5."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import arrays
from .errors import OptionError
from .evaluations import Evaluations, Question, deviation_table, output_table
from .likelihood import Asked, VariationalBound, means, normal_cdf, normals, one_of
from .tables import Table

_FIXED = ("fixed_small", "fixed_large")
_LEAST_PROBABILITY = 1e-12  # of a pixel: improved-diffusion's clamp


class Chain:
    """The chain of `steps` levels, the noisiest first, from the engine's own rows: alpha, sigma [K] of x_t; t [K]; v0
    [K], the weight of x0 in the posterior mean (eq. 7), whose weight of x_t is the same in q and p; small, large [K],
    log beta~ and log beta. The step to the image has beta~ = 0: improved-diffusion's code gives it the value of the
    step before.
    """

    def __init__(self, evaluations: Evaluations, steps: int) -> None:
        def rows(prediction: str | None, variance: str = "fixed_small") -> np.ndarray:
            return evaluations.rows("ddpm", steps, prediction=prediction, variance=variance, grid=str(steps))[0]

        levels, large = rows("v"), rows("v", "fixed_large")  # of a v network x0 = alpha x - sigma v
        self.rows = rows(None)
        self.alpha, self.sigma, self.t = levels["p"], -levels["q"], np.rint(levels["t"]).astype(np.int64)
        self.v0 = levels["wx"][:, 2]
        self.small = 2 * np.log(np.append(levels["wx"][:-1, 7], levels["wx"][-2, 7]))
        self.large = 2 * np.log(np.append(large["wx"][:-1, 7], self.sigma[-1]))


def variational_bound(
    evaluations: Evaluations, asked: Asked, *, steps: int | None, variance: str | None, clip: bool | None
) -> VariationalBound:
    """L_T, L_{t-1} and L_0 of each image, one eps of stream 1, index t, per term."""
    T = len(evaluations.alpha_bar)
    if T == 0:
        raise OptionError(
            "method: expected 'ode' for a plan in continuous time, got 'vlb': the bound is a sum over a discrete chain"
        )
    if T < 2:
        raise OptionError("method: expected a schedule of 2 timesteps or more for 'vlb', got 1")
    K = T if steps is None else arrays.integer(steps, "steps", 2, T)
    if clip not in (None, True, False):
        raise OptionError(f"clip: expected True or False, got {clip!r}")
    bounds = clip_bounds(evaluations.model["clip_range"], asked.range) if clip in (None, True) else None
    kind = variance_kind(variance, evaluations.model["variance"], evaluations.default_variance)
    chain, n = Chain(evaluations, K), len(asked.x0)
    x0 = asked.x0.astype(np.float64)
    terms, mse, xstart_mse = np.empty((3, n, K))
    outputs = each_level(evaluations, asked, chain, kind)
    for i, (x, eps, e, v) in enumerate(outputs):
        row, k = chain.rows[i], K - 1 - i
        x0_hat = row["p"] * x + row["q"] * e
        if bounds is not None:
            x0_hat = np.clip(x0_hat, *bounds)
        log_p = model_log_variance(kind, chain, i, v)
        if k == 0:
            terms[:, 0] = decoder_bits(asked, x0_hat, log_p)
        else:
            gap = chain.v0[i] * (x0 - x0_hat)
            terms[:, k] = means(gaussian_kl(gap, chain.small[i], log_p)) / math.log(2)
        eps_hat = (x - chain.alpha[i] * x0_hat) / chain.sigma[i]
        mse[:, k], xstart_mse[:, k] = means((eps_hat - eps) ** 2), means((x0_hat - x0) ** 2)
    prior = means(gaussian_kl(chain.alpha[0] * x0, 2 * math.log(chain.sigma[0]), 0.0)) / math.log(2)
    nfe = K * (1 if kind in _FIXED else 2)
    total = np.array([row.sum() for row in terms]) + prior
    return VariationalBound(
        total, terms, prior, chain.t[::-1].copy(), mse, xstart_mse, evaluations.seeds, evaluations.labels, nfe
    )


def variance_kind(given: str | None, network: str, default: str) -> str:
    """The reverse process's variance: what is asked for, the network's own, or the plan's."""
    known = _FIXED if network == "fixed" else (*_FIXED, network)
    if given is not None and given not in known:
        raise OptionError(f"variance: expected {' or '.join(known)} for a network of variance {network}, got {given!r}")
    if given is not None:
        return one_of(given, "variance", known)
    return network if network != "fixed" else default if default in _FIXED else "fixed_small"


def clip_bounds(clip_range: Any, data_range: tuple[float, float]) -> tuple[float, float]:
    return tuple(clip_range) if None not in clip_range else data_range


def each_level(evaluations: Evaluations, asked: Asked, chain: Chain, kind: str) -> Iterator[tuple[Any, ...]]:
    """For each level, the noisiest first: x_t = alpha x0 + sigma eps (eq. 4) float32 [n, *shape], eps, the network's
    output for x_t, and the learned log variance or None."""
    seeds, shape, every, context = evaluations.seeds, evaluations.shape, np.arange(len(asked.x0)), collections.deque()
    is_learned, T = kind not in _FIXED, len(evaluations.alpha_bar)

    def deviation(i: int, noise_index: int) -> Table:
        return deviation_table(chain.rows[i], kind, chain.small[i], chain.large[i], noise_index)

    def questions() -> Iterator[Question]:
        for i, t in enumerate(chain.t):
            eps = normals(seeds, int(t), shape, 1)
            x = np.float32(chain.alpha[i]) * asked.x0 + np.float32(chain.sigma[i]) * eps
            lost = (eps == 0).reshape(len(eps), -1).any(1) & is_learned
            context.append((x, eps, lost))
            yield Question(x, output_table(chain.rows[i]), every)
            if is_learned:
                yield Question(x, deviation(i, int(t)), every)
            if lost.any():  # std z is 0 there: other noise
                yield Question(x[lost], deviation(i, T + int(t)), every[lost])

    evaluations.expected = len(chain.t) * (2 if is_learned else 1)
    answers = evaluations.outputs(questions())
    for t in chain.t:
        e = next(answers)
        x, eps, lost = context.popleft()
        log_var = None
        if is_learned:
            scaled, z = next(answers).astype(np.float64), eps.astype(np.float64)
            if lost.any():
                at = z[lost] == 0
                second = normals(seeds[lost], T + int(t), shape, 1)
                scaled[lost] = np.where(at, next(answers), scaled[lost])
                z[lost] = np.where(at, second, z[lost])
            log_var = 2 * np.log(scaled / z)
        yield x.astype(np.float64), eps, e.astype(np.float64), log_var
    answers.close()


def model_log_variance(kind: str, chain: Chain, i: int, learned: np.ndarray | None) -> Any:
    """log variance of p(x_{t-1} | x_t): a number, or the network's own per element."""
    if learned is not None:
        return learned
    is_end = i == len(chain.t) - 1
    return chain.large[i] if kind == "fixed_large" and not is_end else chain.small[i]


def gaussian_kl(gap: np.ndarray, log_q: float, log_p: Any) -> np.ndarray:
    """KL(N(mu, e^log_q) | N(mu + gap, e^log_p)) of every element, nats."""
    d = log_q - log_p
    return 0.5 * ((np.expm1(d) - d) + gap**2 * np.exp(-log_p))


def decoder_bits(asked: Asked, mean: np.ndarray, log_var: Any) -> np.ndarray:
    """L_0, eq. 13: minus log2 of what N(mean, e^log_var) gives to each pixel's own level, half a level to either side;
    the darkest and the brightest level own the tail.  -> [n]"""
    low, high = asked.range
    half, x0 = (high - low) / 510, low + asked.levels * ((high - low) / 255)
    scale = np.exp(-0.5 * log_var)
    upper = np.where(asked.levels == 255, 1.0, normal_cdf((x0 + half - mean) * scale))
    lower = np.where(asked.levels == 0, 0.0, normal_cdf((x0 - half - mean) * scale))
    return means(-np.log2(np.maximum(upper - lower, _LEAST_PROBABILITY)))
