"""ddpm_rt/reference/philox.py against Random123's known answers, against libm in float64, and against the normal law."""

import math

import numpy as np
import pytest
from scipy import stats

from ddpm_rt.reference import philox

# Random123, kat_vectors: philox4x32 10: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_known_answers(counter, key, expected):
    assert tuple(int(w) for w in philox.philox4x32(counter, key)) == expected


def test_normals_are_box_muller_of_the_words():
    """The same words through libm in float64: the float32 polynomials may differ by a few ulp and no more."""
    w0, w1, w2, w3 = (w.astype(np.float64) for w in philox.words(99, np.arange(50000), 3, 1))

    def pair(a, b):
        u = a * 2.0**-32 + 2.0**-33
        r, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * b / 2.0**32
        return r * np.cos(angle), r * np.sin(angle)

    expected = np.stack([*pair(w0, w1), *pair(w2, w3)], axis=-1).reshape(-1)
    got = philox.noise(99, 3, (200000,), 1)
    assert got.dtype == np.float32
    # float32(u) near 1 loses bits of log u, which is the definition's own choice: r moves by at most 2.5e-4 there
    assert np.abs(got - expected).max() < 3e-4
    assert np.median(np.abs(got - expected)) < 1e-7


def test_polynomials_are_accurate():
    x = np.linspace(-0.25, 0.25, 100001, dtype=np.float32)
    exact = x.astype(np.float64)
    assert np.abs(philox.sinpi_f32(x) - np.sin(np.pi * exact)).max() < 1.2e-7
    assert np.abs(philox.cospi_f32(x) - np.cos(np.pi * exact)).max() < 1.2e-7
    u = np.concatenate([np.geomspace(2.0**-33, 1, 200001), np.linspace(0.5, 1, 100001)]).astype(np.float32)
    log = np.log(u.astype(np.float64))
    error = np.abs(philox.log_f32(u) - log)
    assert (error <= 1.01 * np.spacing(np.abs(log).astype(np.float32))).all()


def test_quadrants_and_extremes():
    zero, all_ones = np.uint32([0]), np.uint32([0xFFFFFFFF])
    first, second = philox.normal_pair(np.repeat(zero, 4), np.uint32([0, 1 << 30, 2 << 30, 3 << 30]))
    r = math.sqrt(2 * 33 * math.log(2))  # the largest radius there is
    assert np.allclose(first, [r, 0, -r, 0], atol=1e-6) and np.allclose(second, [0, r, 0, -r], atol=1e-6)
    first, second = philox.normal_pair(all_ones, zero)  # u rounds to 1: radius 0, never NaN
    assert first == 0 and second == 0


def test_golden_vector_of_version_1():
    """Bits computed by kernels/philox.h; a change is a new version."""
    got = philox.noise(0x123456789ABCDEF0, 7, (8,), 1).view(np.uint32)
    assert [f"{v:08x}" for v in got] == (
        ["3fdf8457", "3f8733fa", "3fad3d38", "3f84f664", "3f36ed01", "3e716d21", "be004906", "bf747e6d"]
    )


def test_normal_law_and_independence_of_streams():
    a = philox.noise(5, 0, (3, 100, 100), 1).astype(np.float64)
    assert stats.kstest(a.ravel(), "norm").pvalue > 1e-3
    for other in (
        philox.noise(6, 0, (3, 100, 100), 1),
        philox.noise(5, 1, (3, 100, 100), 1),
        philox.noise(5, 0, (3, 100, 100)),
    ):
        assert abs(np.corrcoef(a.ravel(), other.ravel())[0, 1]) < 0.03


def test_prefix_shape_and_range():
    assert np.array_equal(philox.noise(1, 2, (2, 3, 5)).ravel(), philox.noise(1, 2, (37,))[:30])
    assert philox.noise(1, 2, ()).shape == ()
    labels = [philox.label(seed, 10) for seed in range(2000)]
    assert set(labels) == set(range(10)) and stats.chisquare(np.bincount(labels)).pvalue > 1e-3
    assert philox.noise(2**64 - 1, 2**32 - 1, (4,)).shape == (4,)
    with pytest.raises(ValueError, match="seed"):
        philox.noise(2**64, 0, (4,))
    with pytest.raises(ValueError, match="index"):
        philox.noise(0, -1, (4,))


def test_the_engine_draws_the_same_bits():
    import ddpm_rt

    for seed, index, shape, stream in (
        (0, 0, (1, 28, 28), 0),
        (2**64 - 1, 999, (3, 7, 5), 1),
        (2**40 + 3, 2**31, (13,), 2),
        (99, 5, (200_001,), 1),
    ):
        mine = philox.noise(seed, index, shape, stream)
        assert np.array_equal(
            mine.view(np.uint32), np.asarray(ddpm_rt.noise(seed, index, shape, stream)).view(np.uint32)
        )
