"""Random numbers, version 1, in numpy: the same bits as the engine's, on any machine.

Philox4x32-10 (Salmon et al., SC 2011), then Box-Muller in float32 with + - * sqrt only, each rounded once. The definition
is in kernels/philox.h; the polynomials below are part of it. `noise(seed, index, shape, stream)` is what the engine
draws for the sample of that seed at that noise index: streams 0 x_T (index 0), 1 steps (index = row), 2 known image,
3 augmentation, 4 labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
F32 = np.float32
MASK = np.uint64(0xFFFFFFFF)
SIN = (-5.8901221e-1, 2.5497611, -5.1677077)
COS = (2.3136423e-1, -1.3350506, 4.0587076, -4.9348022)


def philox4x32(counter: Sequence[Array | int], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Ten rounds over counters of four words, each an integer or an array of one shape.  -> four uint32 arrays"""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(10):
        m0, m1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        high0, high1 = m0 >> np.uint64(32), m1 >> np.uint64(32)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), m1 & MASK, high0 ^ c3 ^ np.uint64(k1), m0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(np.broadcast_arrays(*(c.astype(np.uint32) for c in (c0, c1, c2, c3))))


def words(seed: int, block: Array | int, index: int, stream: int) -> tuple[Array, Array, Array, Array]:
    """The four raw words of counter (block, index, stream, 0) under the key of a 64-bit seed."""
    return philox4x32((block, index, stream, 0), (seed & 0xFFFFFFFF, seed >> 32))


def _horner(coefficients: Sequence[float], x: Array) -> Array:
    poly = np.full_like(x, F32(coefficients[0]))
    for c in coefficients[1:]:
        poly = poly * x + F32(c)
    return poly


def log_f32(value: Array) -> Array:
    """Natural logarithm of positive normal floats: value = 2^k m, m in [sqrt(1/2), sqrt 2), f = m - 1.  float32"""
    bits = value.view(np.uint32)
    exponent = (bits - np.uint32(0x3F3504F3)).view(np.int32) >> np.int32(23)
    f = (bits - (exponent.view(np.uint32) << np.uint32(23))).view(F32) - F32(1)
    k, f2 = exponent.astype(F32), f * f
    p01 = F32(3.3333331e-1) - F32(2.5000820e-1) * f  # the order of the operations is part of the definition
    p23 = F32(2.0001227e-1) - F32(1.6623357e-1) * f
    p45 = F32(1.4201759e-1) - F32(1.3160183e-1) * f
    p67 = F32(1.2761575e-1) - F32(7.634494e-2) * f
    poly = (p01 + p23 * f2) + (p45 + p67 * f2) * (f2 * f2)
    tail = (f * f2) * poly + (k * F32(-2.1219444e-4) - F32(0.5) * f2)
    return k * F32(0.693359375) + (f + tail)


def sinpi_f32(x: Array) -> Array:
    """sin(pi x), |x| <= 1/4.  float32"""
    tail = _horner(SIN, x * x) * (x * x) - F32(8.7422777e-8)
    return x * F32(3.1415927) + x * tail


def cospi_f32(x: Array) -> Array:
    """cos(pi x), |x| <= 1/4.  float32"""
    return F32(1) + _horner(COS, x * x) * (x * x)


def normal_pair(a: Array, b: Array) -> tuple[Array, Array]:
    """Box-Muller of two uint32 arrays: radius from a, angle from b with exact reduction to a quadrant.  float32 each"""
    u = a.astype(F32) * F32(2.0**-32) + F32(2.0**-33)
    r = np.sqrt(F32(-2) * log_f32(u))
    turned = b + np.uint32(0x20000000)
    j = turned >> np.uint32(30)
    x = ((turned & np.uint32(0x3FFFFFFF)) - np.uint32(0x20000000)).view(np.int32).astype(F32) * F32(2.0**-31)
    s, c = sinpi_f32(x), cospi_f32(x)
    odd = (j & np.uint32(1)) != 0
    c, s = np.where(odd, s, c), np.where(odd, c, s)
    first = np.where((j == 1) | (j == 2), -c, c)
    second = np.where(j >= 2, -s, s)
    return r * first, r * second


def noise(seed: int, index: int, shape: Sequence[int], stream: int = 0) -> Array:
    """Standard normal numbers of one sample in its logical [C, H, W] order.  float32 of `shape`

    seed in [0, 2^64), index and stream in [0, 2^32), at most 2^34 elements; ValueError otherwise.
    """
    count = math.prod(shape)
    for name, value, limit in (("seed", seed, 2**64), ("index", index, 2**32), ("stream", stream, 2**32)):
        if not 0 <= value < limit:
            raise ValueError(f"{name}: expected 0..{limit - 1}, got {value}")
    if any(n < 0 for n in shape) or count > 2**34:
        raise ValueError(f"shape: expected at most 2^34 elements, got {tuple(shape)}")
    w0, w1, w2, w3 = words(seed, np.arange((count + 3) // 4), index, stream)
    normals = np.stack([*normal_pair(w0, w1), *normal_pair(w2, w3)], axis=-1)
    return normals.reshape(-1)[:count].reshape(shape)


def label(seed: int, classes: int) -> int:
    """The class that a seed draws where none is asked for: floor(w0 K / 2^32), stream 4."""
    return int(words(seed, 0, 0, 4)[0]) * classes >> 32
