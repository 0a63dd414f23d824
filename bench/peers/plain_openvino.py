"""The plainest loop over the same backend: OpenVINO's own Python API and DDIM in numpy, as a user would write it."""

from __future__ import annotations

import numpy as np


def compile_network(onnx_bytes: bytes, batch: int, threads: int, precision: str = "f32"):
    """A static-shape network for `batch` rows: x, t, label -> eps."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(onnx_bytes)
    model.reshape({p: [batch, *list(p.get_partial_shape())[1:]] for p in model.inputs})
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return core.compile_model(model, "CPU", options).create_infer_request()


def ddim(request, alpha_bar: np.ndarray, x: np.ndarray, labels: np.ndarray, null: int, steps: int, scale: float):
    """DDIM (eta 0) on the leading grid, x0 clipped to [-1, 1], eps re-derived from it; guided unless scale is 1."""
    T, n = len(alpha_bar), len(x)
    grid = [i * (T // steps) for i in range(steps)][::-1]
    label = labels if scale == 1 else np.concatenate([labels, np.full(n, null)])
    for i, t in enumerate(grid):
        ab, ab_prev = alpha_bar[t], alpha_bar[grid[i + 1]] if i + 1 < steps else 1.0
        batch = x if scale == 1 else np.concatenate([x, x])
        eps = request.infer({"x": batch, "t": np.full(len(batch), t, np.float32), "label": label})["eps"]
        if scale != 1:
            eps = eps[n:] + np.float32(scale) * (eps[:n] - eps[n:])
        x0 = np.clip((x - np.float32((1 - ab) ** 0.5) * eps) / np.float32(ab**0.5), -1, 1)
        eps = (x - np.float32(ab**0.5) * x0) / np.float32((1 - ab) ** 0.5)
        x = np.float32(ab_prev**0.5) * x0 + np.float32((1 - ab_prev) ** 0.5) * eps
    return x
