"""What guidance costs and saves: the interval against the measured cost of the calls it leaves out, thresholds and rescale in the step.

The limit of the interval: with a share f of the steps guided, the whole call costs (1 + f) / 2 of the guided one where the
network's cost is proportional to its rows.
"""

from __future__ import annotations

import statistics

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt import kernels

from .compare_rounds import interleaved

STEPS = 20


@pytest.mark.parametrize("n", [1, 8, 32])
def test_guidance_interval(benchmark, n: int) -> None:
    """digits, half of the levels guided; the expectation is the sum of the measured costs of guided and unguided calls."""
    sigma = np.sqrt(1 / np.asarray(kernels.alpha_bar("linear")) - 1)
    with ddpm_rt.Engine("digits", precision="fp32") as engine:
        options = {"labels": np.arange(n) % 10, "seed": 0, "steps": STEPS, "output": "float"}
        visited = np.sort(sigma[(kernels.rows("ddim", STEPS)["t"]).astype(int)])
        interval = (0.0, float(visited[STEPS // 2 - 1]))

        def guided() -> np.ndarray:
            return engine.sample(n, scale=3, **options)

        def halved() -> np.ndarray:
            return engine.sample(n, scale=3, guidance_interval=interval, **options)

        def unguided() -> np.ndarray:
            return engine.sample(n, scale=1, **options)

        assert (guided().nfe, halved().nfe, unguided().nfe) == (2 * STEPS, STEPS + STEPS // 2, STEPS)
        for _ in range(3):  # until the costs of every batch size are known
            guided(), halved(), unguided()
        times: dict[str, list[float]] = {"guided": [], "halved": [], "unguided": []}
        for _ in range(9):
            for name, call in (("guided", guided), ("halved", halved), ("unguided", unguided)):
                times[name].append(call().seconds)
        median = {name: statistics.median(seconds) for name, seconds in times.items()}
        expected = (median["guided"] + median["unguided"]) / 2
        benchmark.extra_info.update(
            {f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in median.items()},
            share_of_guided=round(median["halved"] / median["guided"], 4),
            over_measured_calls=round(median["halved"] / expected, 4),
            over_limit=round(median["halved"] / median["guided"] / 0.75, 4),
        )
        benchmark.pedantic(halved, rounds=1)


@pytest.mark.parametrize("what", ["guidance_rescale", "threshold"])
def test_in_the_step(benchmark, what: str) -> None:
    """One guided DDIM row over 32 samples of 3 x 64 x 64 beside the same row with the option; ns per element and core."""
    shape = (32, 3, 64, 64)
    options = {"guidance_rescale": {"guidance_rescale": 0.7}, "threshold": {"threshold": (0.995, 1.5)}}[what]
    rng = np.random.default_rng(0)
    x, eps, uncond = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    rows = {
        name: kernels.rows("ddim", 50, clip="rederive", **more) for name, more in (("plain", {}), ("with", options))
    }
    out = np.empty_like(x)

    def step(name: str) -> np.ndarray:
        return kernels.step(x, eps, rows[name], eps_uncond=uncond, scale=3.0, seeds=0, index=20, out=out)

    plain = step("plain").copy()
    assert np.isfinite(step("with")).all() and not np.array_equal(plain, out)
    result = interleaved(lambda: step("with"), lambda: step("plain"), rounds=9)
    benchmark.extra_info.update(result, elements=x.size)
    benchmark.pedantic(step, args=("with",), rounds=3)
