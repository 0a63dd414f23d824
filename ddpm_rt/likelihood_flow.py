"""The likelihood of the probability flow: Song et al. 2021 (2011.13456) eq. 13 and 39.

In x / alpha, and in the network's own space where the noise model is flow, the flow is dx / dsigma = (x - x0(x, sigma))
/ sigma (Karras et al. 2206.00364 eq. 1), and log p(x) = log p(noise) + the integral of its divergence over sigma. The
divergence is estimated by probes, v' J v (Skilling, Hutchinson), J v by central differences in float32. Heun's steps
over the noise levels of `euler`; the divergence, which is like 1 / sigma at both ends, by the trapezium rule over log
sigma.
"""

from __future__ import annotations

import math

import numpy as np

from . import arrays
from .errors import OptionError
from .evaluations import Evaluations, Question, output_table
from .likelihood import DEFAULT_ODE_STEPS, PROBES, Asked, FlowLikelihood, means, normal_cdf, normals, one_of

#: Half of a central difference, of the level's own noise.
DIFFERENCE = 0.02
_MOST_PROBES, _MOST_STEPS = 1024, 9999
_RHO = 7
_STREAM_STEPS, _STREAM_AUGMENT = 1, 3


class Flow:
    """Levels, the least noisy first, and the flow's velocity at each. sigma [K + 1]; alpha at the first; prior_std."""

    def __init__(self, evaluations: Evaluations, steps: int, probe: np.ndarray) -> None:
        schedule = evaluations.model.get("schedule", {})
        is_flow = schedule.get("kind") == "flow"
        kind, options = "flow" if is_flow else "eps", {"final_sigma": "zero"}
        if T := len(evaluations.alpha_bar):
            between = evaluations.rows("euler", steps + 1, prediction=kind, sampler_options=options)[0]["t"]
            options["timesteps"] = distinct_integers(between[::-1], T)[::-1].tolist()
        elif is_flow:  # as Karras et al. eq. 5: equal steps would leave out the small levels
            options["timesteps"] = (np.linspace(1, schedule["t_min"] ** (1 / _RHO), steps + 1) ** _RHO).tolist()
        of_levels, self.prior_std = evaluations.rows("euler", steps + 1, prediction=kind, sampler_options=options)
        self.rows = evaluations.rows("euler", steps + 1, sampler_options=options)[0][::-1]
        self.sigma = -of_levels["q"][::-1]  # of an eps (flow) network x0 = x - sigma e in this space
        self.alpha = 1 - self.sigma[0] if is_flow else 1.0
        self.evaluations, self.probe = evaluations, probe

    def __call__(self, x: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Velocity at x [n, *shape] and level i, and its divergence by the probes [n, probes, *shape] -> float64 [n]"""
        n, count = self.probe.shape[:2]
        sigma, row, shape = self.sigma[i], self.rows[i], self.evaluations.shape
        aside = DIFFERENCE * sigma * self.probe
        states = np.concatenate([x[:, None], x[:, None] + aside, x[:, None] - aside], 1).astype(np.float32)
        each = 1 + 2 * count
        question = Question(states.reshape(n * each, *shape), output_table(row), np.repeat(np.arange(n), each))
        (e,) = self.evaluations.outputs([question])
        velocity = ((1 - row["p"]) * states - row["q"] * e.reshape(states.shape)) / sigma
        difference = (velocity[:, 1 : 1 + count] - velocity[:, 1 + count :]) / (2 * DIFFERENCE * sigma)
        return velocity[:, 0], means(self.probe * difference) * x[0].size


def distinct_integers(t: np.ndarray, T: int) -> np.ndarray:
    """Increasing times, rounded and pushed apart within 0 .. T - 1."""
    k = np.arange(len(t))
    raised = np.maximum.accumulate(np.rint(t).astype(int) - k) + k
    return np.minimum(raised, T - len(t) + k)


def flow_likelihood(
    evaluations: Evaluations, asked: Asked, *, steps: int | None, probe: str | None, probes: int | None
) -> FlowLikelihood:
    """-log2 p of x0 under the model's least noise, where the flow begins (Song et al. appendix D.2)."""
    kind = one_of(probe or PROBES[0], "probe", PROBES)
    count = 1 if probes is None else arrays.integer(probes, "probes", 1, _MOST_PROBES)
    precision = evaluations.precision
    if precision not in ("fp32", ""):
        raise OptionError(
            f"method: expected an engine opened with precision='fp32' for 'ode', got {precision}: central differences of the "
            "network need float32"
        )
    T = len(evaluations.alpha_bar)
    if T == 1:
        raise OptionError("method: expected a schedule of 2 timesteps or more for 'ode', got 1")
    most = T - 1 if T else _MOST_STEPS
    K = min(DEFAULT_ODE_STEPS, most) if steps is None else arrays.integer(steps, "steps", 1, most)
    evaluations.expected = 2 * K
    n, shape = asked.x0.shape[0], evaluations.shape
    drawn = np.stack([normals(evaluations.seeds, k, shape, _STREAM_STEPS) for k in range(count)], 1).astype(np.float64)
    flow = Flow(evaluations, K, drawn if kind == "gaussian" else np.where(drawn < 0, -1.0, 1.0))
    data, offset = dequantised(asked, evaluations.seeds)
    x, integral, D = flow.alpha * data, np.zeros(n), asked.x0[0].size
    for i in range(K):
        h, log_h = flow.sigma[i + 1] - flow.sigma[i], math.log(flow.sigma[i + 1] / flow.sigma[i])
        at, divergence = flow(x, i)
        there, divergence_there = flow(x + h * at, i + 1)
        x = x + 0.5 * h * (at + there)
        integral += 0.5 * log_h * (flow.sigma[i] * divergence + flow.sigma[i + 1] * divergence_there)
    std = flow.prior_std
    prior = (0.5 * means((x / std) ** 2) + 0.5 * math.log(2 * math.pi) + math.log(std)) / math.log(2)
    change = (-integral / D - math.log(flow.alpha)) / math.log(2)
    return FlowLikelihood(
        prior + change + offset, prior, change, offset, evaluations.seeds, evaluations.labels, 2 * K * (1 + 2 * count)
    )


def dequantised(asked: Asked, seeds: np.ndarray) -> tuple[np.ndarray, float]:
    """(x [n, *shape], offset): level k of 256 is uniform in [k, k + 1) / 256 of the range, whose density is log2(256 /
    range) bits short of the level's probability. u = Phi(normal of stream 3)."""
    if asked.levels is None:
        return asked.x0.astype(np.float64), 0.0
    low, high = asked.range
    u = normal_cdf(normals(seeds, 0, asked.x0.shape[1:], _STREAM_AUGMENT))
    return low + (asked.levels + u) * ((high - low) / 256), math.log2(256 / (high - low))
