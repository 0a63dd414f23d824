"""The metrics against closed forms and against the plainest code of the papers' definitions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from ddpm_rt.errors import OptionError, ShapeError
from ddpm_rt.evaluation import metrics

RNG = np.random.default_rng(0)


def spd(d: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((d, d))
    return a @ a.T / d + 0.1 * np.eye(d)


def exactly(mean: np.ndarray, cov: np.ndarray, n: int = 60) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly these."""
    z = np.random.default_rng(1).standard_normal((n, len(mean)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return mean + z @ np.linalg.cholesky(cov).T


def test_fid_of_commuting_gaussians_is_the_sum_over_axes():
    """Diagonal covariances: sum (m - m')^2 + (s - s')^2."""
    m, s, m2, s2 = RNG.normal(size=5), RNG.uniform(0.5, 2, 5), RNG.normal(size=5), RNG.uniform(0.5, 2, 5)
    expected = ((m - m2) ** 2 + (s - s2) ** 2).sum()
    found = metrics.fid(exactly(m, np.diag(s**2)), exactly(m2, np.diag(s2**2)))
    assert found == pytest.approx(expected, rel=1e-9)


def test_fid_agrees_with_the_matrix_square_root_of_scipy():
    a, b = exactly(RNG.normal(size=6), spd(6, 2)), exactly(RNG.normal(size=6), spd(6, 3))
    c, c2 = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + c2 - 2 * scipy.linalg.sqrtm(c @ c2).real)
    assert metrics.fid(a, b) == pytest.approx(expected, rel=1e-8)


def test_fid_of_a_set_with_itself_is_zero_even_where_the_covariance_is_singular():
    a = RNG.normal(size=(10, 30))
    assert abs(metrics.fid(a, a)) < 1e-6


def test_kid_is_the_double_sum_of_its_definition():
    a, b = RNG.normal(size=(17, 4)), RNG.normal(0.5, 1, size=(23, 4))

    def k(x, y):
        return (x @ y / 4 + 1) ** 3

    within_a = np.mean([k(a[i], a[j]) for i in range(17) for j in range(17) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(23) for j in range(23) if i != j])
    across = np.mean([k(x, y) for x in a for y in b])
    assert metrics.kid(a, b) == pytest.approx(within_a + within_b - 2 * across, rel=1e-12)


def test_kid_does_not_depend_on_the_block_size(monkeypatch):
    a, b = RNG.normal(size=(50, 8)), RNG.normal(size=(40, 8))
    whole = metrics.kid(a, b)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    assert metrics.kid(a, b) == pytest.approx(whole, rel=1e-12)


def test_kid_is_unbiased():
    """Two samples of one distribution: the mean over many draws is 0 within 4 standard errors."""
    drawn = np.array([metrics.kid(*np.random.default_rng(s).normal(size=(2, 30, 4))) for s in range(300)])
    assert abs(drawn.mean()) < 4 * drawn.std() / np.sqrt(300)


def test_precision_and_recall_by_hand():
    """On a line with k = 1. Real 0 1 10: radii 1 1 9. Generated 0.5 30: radii 29.5 both."""
    real, generated = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [30.0]])
    precision, recall = metrics.precision_recall(real, generated, k=1)
    assert (precision, recall) == (0.5, 1.0)
    far = np.array([[100.0], [100.1]])
    assert metrics.precision_recall(real, far, k=1) == (0.0, 0.0)


def test_precision_and_recall_agree_with_plain_loops(monkeypatch):
    real, generated = RNG.normal(size=(40, 3)), RNG.normal(0.3, 0.7, size=(40, 3))

    def radius(set_, i):
        return sorted(np.linalg.norm(set_[i] - set_[j]) for j in range(len(set_)) if j != i)[2]

    def share(points, centres):
        radii = [radius(centres, i) for i in range(len(centres))]
        return np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points])

    monkeypatch.setattr(metrics, "BLOCK", 16)
    assert metrics.precision_recall(real, generated) == (share(generated, real), share(real, generated))


def test_mode_collapse_shows_in_recall_and_noise_in_precision():
    real = RNG.normal(size=(200, 4))
    precision, recall = metrics.precision_recall(real, real[:1] + 0.01 * RNG.normal(size=(200, 4)))
    assert precision > 0.99 and recall < 0.05
    precision, recall = metrics.precision_recall(real, 6 * RNG.normal(size=(200, 4)))
    assert precision < 0.3


def test_wilson_interval_solves_its_equation():
    """Its ends are the p with |hits/n - p| = z sqrt(p (1 - p) / n)."""
    for hits, n in ((970, 1000), (0, 50), (50, 50), (3, 7)):
        share = metrics.Share(hits, n)
        for p in share.interval():
            assert abs(share.value - p) == pytest.approx(share.z * np.sqrt(p * (1 - p) / n), abs=1e-9)
        low, high = share.interval()
        reference = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_bootstrap_interval_of_a_mean_difference_is_the_normal_one():
    a, b = RNG.normal(0, 1, size=(400, 1)), RNG.normal(1, 2, size=(300, 1))
    low, high = metrics.bootstrap(lambda x, y: float(x.mean() - y.mean()), a, b, resamples=1000)
    half = 1.96 * np.sqrt(a.var() / 400 + b.var() / 300)
    assert (low + high) / 2 == pytest.approx(a.mean() - b.mean(), abs=0.05 * half * 2)
    assert high - low == pytest.approx(2 * half, rel=0.12)


def test_intervals_hold_the_value_and_are_reproducible():
    a, b = RNG.normal(size=(120, 6)), RNG.normal(0.2, 1, size=(100, 6))
    for interval, value in (
        (metrics.bootstrap(metrics.fid, a, b, resamples=50), metrics.fid(a, b)),
        (metrics.kid_interval(a, b, resamples=50), metrics.kid(a, b)),
    ):
        assert interval[0] < value < interval[1]
    assert metrics.kid_interval(a, b, resamples=50) == metrics.kid_interval(a, b, resamples=50)


def test_kid_interval_resamples_rows(monkeypatch):
    """One pass with weights equals resampled sets in which a row is never paired with its own copy."""
    a, b = RNG.normal(size=(12, 3)), RNG.normal(size=(9, 3))
    i, j = RNG.integers(0, 12, 12), RNG.integers(0, 9, 9)
    wa, wb = np.bincount(i, minlength=12)[:, None] * 1.0, np.bincount(j, minlength=9)[:, None] * 1.0

    def mean_of(x, ids):
        pairs = [(x[p] @ x[q] / 3 + 1) ** 3 for p in ids for q in ids if p != q]
        return np.mean(pairs)

    expected = mean_of(a, i) + mean_of(b, j) - 2 * np.mean([(a[p] @ b[q] / 3 + 1) ** 3 for p in i for q in j])
    assert metrics._kid(a, b, wa, wb)[0] == pytest.approx(expected, rel=1e-10)


def test_nearest_distances_agree_with_scipy():
    a, b = RNG.normal(size=(30, 5)), RNG.normal(size=(40, 5))
    expected = scipy.spatial.distance.cdist(a, b).min(1)
    np.testing.assert_allclose(metrics.nearest_distances(a, b), expected, rtol=1e-9)
    assert metrics.nearest_distances(b[:3], b) == pytest.approx([0, 0, 0], abs=1e-6)


def test_bad_features_are_named():
    good = RNG.normal(size=(5, 3))
    with pytest.raises(ShapeError, match="b: expected features of width 3"):
        metrics.fid(good, RNG.normal(size=(5, 2)))
    with pytest.raises(ShapeError, match="a: expected at least 2 rows"):
        metrics.kid(good[:1], good)
    with pytest.raises(ShapeError, match="finite"):
        metrics.fid(np.full((5, 3), np.nan), good)
    with pytest.raises(OptionError, match="resamples"):
        metrics.bootstrap(metrics.fid, good, good, resamples=1)
    with pytest.raises(OptionError, match="share"):
        metrics.Share(3, 2).interval()
