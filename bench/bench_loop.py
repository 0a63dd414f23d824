"""The loop around the network: its tax, and the plainest loop over the same backend beside it.

Loop tax = (time of ticks - time inside the backend's own call) / time inside the backend's own call, one run.
"""

from __future__ import annotations

import numpy as np
import pytest

import ddpm_rt
from ddpm_rt import _core

from .compare_rounds import interleaved
from .peers import plain_openvino
from .shapes import alpha_bar, plans

CASES = [("digits", 1), ("digits", 8), ("digits", 32), ("tiny", 1), ("cifar10", 1), ("cifar10", 8)]
STEPS = {"digits": 50, "tiny": 50, "cifar10": 5}


def open_engine(shape: str) -> ddpm_rt.Engine:
    pytest.importorskip("torch", reason="the export extra makes the shapes' plans")
    return ddpm_rt.Engine(str(plans(shape)[0]), precision="fp32")


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(("shape", "n"), CASES)
def test_loop_against_plain(benchmark, shape: str, n: int, scale: float) -> None:
    """Same weights, same noise, same threads; correctness first."""
    pytest.importorskip("openvino")
    steps = STEPS[shape]
    with open_engine(shape) as engine:
        info = engine.info()
        dims, null = tuple(info["shape"]), len(info["class_names"]) or info["num_classes"]
        labels = (np.arange(n) % null).astype(np.int64)
        latents = np.random.default_rng(0).standard_normal((n, *dims), dtype=np.float32)
        section = _core.Plan(str(plans(shape)[1])).read("unet.onnx")
        request = plain_openvino.compile_network(section, n if scale == 1 else 2 * n, info["threads"])

        def ours() -> np.ndarray:
            return engine.sample(n, labels=labels, latents=latents, steps=steps, scale=scale, seed=0, output="float")

        def peer() -> np.ndarray:
            return plain_openvino.ddim(request, alpha_bar(), latents, labels, null, steps, scale)

        a, b = np.asarray(ours()), peer()
        assert np.abs(a - b).max() <= 2e-2 and np.abs(a - b).mean() <= 1e-4, "the two loops disagree"

        before = engine.info()["loop"]
        result = interleaved(ours, peer, rounds=5 if shape == "cifar10" else 9)
        after = engine.info()["loop"]
        inside = after["denoiser_seconds"] - before["denoiser_seconds"]
        result["loop_tax"] = round((after["busy_seconds"] - before["busy_seconds"] - inside) / inside, 5)
        benchmark.extra_info.update(result, backend=info["backend"], threads=info["threads"])
        benchmark.pedantic(ours, rounds=3)
