"""A sampling loop of one's own over ddpm_rt's parts; bit for bit what Engine.sample computes."""

import numpy as np

import ddpm_rt
from ddpm_rt import kernels


def sample(eps, shape, labels, null, *, sampler="ddim", steps=50, schedule="linear", scale=3.0, seed=0):
    """eps(x, t, labels) -> noise; x [n, *shape] float32, t [n] float32, labels [n] int64 -> images [n, *shape]."""
    rows = ddpm_rt.rows(sampler, steps, schedule)
    x = np.stack([ddpm_rt.noise(seed + i, 0, shape) for i in range(len(labels))])
    for i, row in enumerate(rows):
        t = np.full(len(x), row["t"])
        cond = eps(x, t, labels)
        uncond = eps(x, t, np.full_like(labels, null))
        kernels.step(x, cond, rows, eps_uncond=uncond, scale=scale, seeds=seed, index=i)
    return x
