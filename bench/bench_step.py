"""The fused step kernel: bytes per second beside a copy in the same run, and the cost of its noise."""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_rt

from .compare_rounds import interleaved

ELEMENTS = 3 * 32 * 32


def rows(eta: float) -> np.ndarray:
    return ddpm_rt.rows("ddim", 10, "linear", eta=eta, clip="rederive")


@pytest.mark.parametrize("guided", [False, True])
def test_step_against_copy(benchmark, guided: bool) -> None:
    """Noise off, far beyond the last-level cache. Bytes per element: x 4 + eps 4 (twice when guided) + x' 4; in place."""
    n = 16384  # x alone is 200 MB
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, ELEMENTS), dtype=np.float32)
    cond = rng.standard_normal((n, ELEMENTS), dtype=np.float32)
    uncond = cond[::-1].copy() if guided else None
    seeds, out = np.arange(n, dtype=np.uint64), np.empty_like(x)
    table = rows(0.0)

    def step(out: np.ndarray | None = None) -> None:
        ddpm_rt.kernels.step(x, cond, table, eps_uncond=uncond, scale=3.0, seeds=seeds, index=4, out=out)

    def copy() -> None:
        np.copyto(out, x)

    step(out)
    e = cond[:2] if uncond is None else uncond[:2] + np.float32(3) * (cond[:2] - uncond[:2])
    r = table[4]
    x0 = np.clip(r["p"] * x[:2] + r["q"] * e, -1, 1)
    np.testing.assert_allclose(out[:2], r["wx"][0] * x[:2] + r["wx"][1] * e + r["wx"][2] * x0, atol=2e-5)
    result = interleaved(step, copy, rounds=5)
    per_element = 16 if guided else 12
    result["step_gb_s"] = round(x.size * per_element / result["ours_ms"] / 1e6, 2)
    result["copy_gb_s"] = round(x.size * 8 / result["peer_ms"] / 1e6, 2)
    result["share_of_copy"] = round(result["step_gb_s"] / result["copy_gb_s"], 3)
    benchmark.extra_info.update(result)
    benchmark.pedantic(step, rounds=3)


def test_step_noise(benchmark) -> None:
    """Noise on, inside the cache: nanoseconds per element on one core."""
    n = 64
    x = np.random.default_rng(0).standard_normal((n, ELEMENTS), dtype=np.float32)
    seeds, out = np.arange(n, dtype=np.uint64), np.empty_like(x)
    noisy, quiet = rows(1.0), rows(0.0)

    def on() -> None:
        ddpm_rt.kernels.step(x, x, noisy, seeds=seeds, index=4, out=out)

    def off() -> None:
        ddpm_rt.kernels.step(x, x, quiet, seeds=seeds, index=4, out=out)

    off()
    still = out.copy()
    on()
    z = ddpm_rt.noise(0, int(noisy[4]["noise_index"]), (ELEMENTS,), stream=1)
    assert np.abs(out[0] - still[0]).max() > 0.1 and abs(float(z.std()) - 1) < 0.1
    result = interleaved(on, off, rounds=15)
    result["noise_on_ns_per_element"] = round(result["ours_ms"] * 1e6 / x.size, 3)
    result["noise_off_ns_per_element"] = round(result["peer_ms"] * 1e6 / x.size, 3)
    benchmark.extra_info.update(result)
    benchmark.pedantic(on, rounds=10)
