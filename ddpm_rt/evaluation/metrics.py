"""Distances between two sets of features, and between images. Pure numpy, float64; no model is known here.

Sources: Heusel et al. 2017 (1706.08500, FID), Binkowski et al. 2018 (1801.01401, KID), Kynkaanniemi et al. 2019
(1904.06991, precision and recall), Efron 1979 (bootstrap), Wilson 1927 (interval of a share).

Notation: a [n, d], b [m, d] features, one row per image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from ..errors import OptionError, ShapeError

BLOCK = 1024  # rows at a time: pairwise matrices stay small whatever n is


def _features(a: np.ndarray, field: str, least: int = 2) -> np.ndarray:
    a = np.asarray(a, np.float64)
    if a.ndim != 2 or len(a) < least:
        raise ShapeError(f"{field}: expected at least {least} rows of features [n, d], got shape {list(a.shape)}")
    if not np.isfinite(a).all():
        raise ShapeError(f"{field}: expected finite features, got {int((~np.isfinite(a)).sum())} others")
    return a


def _pair(a: np.ndarray, b: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a, b = _features(a, "a", least), _features(b, "b", least)
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"b: expected features of width {a.shape[1]}, as a has, got {b.shape[1]}")
    return a, b


def gaussian_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |m - m'|^2 + Tr(C + C' - 2 (C C')^(1/2)), Heusel et al. eq. 6.

    The trace of the root is the sum of the singular values of C^(1/2) C'^(1/2), so no complex numbers arise.
    """
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def fid(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to a and b. Biased upwards, more so the fewer rows there are."""
    a, b = _pair(a, b)
    return gaussian_distance(a.mean(0), np.atleast_2d(np.cov(a.T)), b.mean(0), np.atleast_2d(np.cov(b.T)))


def _kernel_sums(a: np.ndarray, b: np.ndarray, wa: np.ndarray, wb: np.ndarray, same: bool) -> np.ndarray:
    """sum_ij wa_ir wb_jr (a_i . b_j / d + 1)^3 for every r; without i = j where the sets are the same.  -> [r]"""
    total = np.zeros(wa.shape[1])
    for i in range(0, len(a), BLOCK):
        base = a[i : i + BLOCK] @ b.T / a.shape[1] + 1
        kernel = base * base * base  # numpy's ** calls pow, ten times slower
        if same:
            k = np.arange(len(kernel))
            kernel[k, i + k] = 0
        total += (wa[i : i + BLOCK] * (kernel @ wb)).sum(0)
    return total


def _kid(a: np.ndarray, b: np.ndarray, wa: np.ndarray, wb: np.ndarray) -> np.ndarray:
    """KID of resampled sets: wa[i, r] counts row i in resample r. A row is never paired with itself.  -> [r]"""

    def pairs(w: np.ndarray) -> np.ndarray:
        return w.sum(0) ** 2 - (w**2).sum(0)

    within_a = _kernel_sums(a, a, wa, wa, True) / pairs(wa)
    within_b = _kernel_sums(b, b, wb, wb, True) / pairs(wb)
    return within_a + within_b - 2 * _kernel_sums(a, b, wa, wb, False) / (wa.sum(0) * wb.sum(0))


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, Binkowski et al. section 4.

    Of whole sets, not a mean over subsets. May be slightly negative.
    """
    a, b = _pair(a, b)
    return float(_kid(a, b, np.ones((len(a), 1)), np.ones((len(b), 1)))[0])


def _resamples(n: int, m: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.integers(0, n, n), rng.integers(0, m, m)


def _interval(value: float, resampled: np.ndarray, level: float) -> tuple[float, float]:
    """The percentile interval, moved so that its distribution's mean is the value.

    A resample repeats rows, which raises every distance; unmoved, the interval would often not even hold the value.
    """
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2]) - resampled.mean() + value
    return float(low), float(high)


def bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    a: np.ndarray,
    b: np.ndarray,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of statistic(a, b) from resamples of the rows of both, centred on the value itself."""
    a, b = _pair(a, b)
    drawn = [statistic(a[i], b[j]) for i, j in _resamples(len(a), len(b), _count(resamples), seed)]
    return _interval(statistic(a, b), np.array(drawn), level)


def kid_interval(
    a: np.ndarray, b: np.ndarray, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """`bootstrap` of `kid`, all resamples in one pass over the kernel."""
    a, b = _pair(a, b)
    drawn = list(_resamples(len(a), len(b), _count(resamples), seed))
    counts_a = [np.bincount(i, minlength=len(a)) for i, _ in drawn]
    counts_b = [np.bincount(j, minlength=len(b)) for _, j in drawn]
    wa = np.stack([np.ones(len(a)), *counts_a], axis=1)  # the first column is the sets themselves
    wb = np.stack([np.ones(len(b)), *counts_b], axis=1)
    value, *resampled = _kid(a, b, wa, wb)
    return _interval(value, np.array(resampled), level)


def _count(resamples: int) -> int:
    if resamples < 2:
        raise OptionError(f"resamples: expected at least 2, got {resamples}")
    return resamples


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, d], [m, d] -> [n, m]"""
    return ((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T).clip(0)


def nearest_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distance of each row of a to its nearest row of b.  [n, d], [m, d] -> [n]"""
    a, b = _pair(a, b, least=1)
    parts = [_squared_distances(a[i : i + BLOCK], b).min(1) for i in range(0, len(a), BLOCK)]
    return np.sqrt(np.concatenate(parts))


def _radii(a: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row.  [n]"""
    out = []
    for i in range(0, len(a), BLOCK):
        d = _squared_distances(a[i : i + BLOCK], a)
        d[np.arange(len(d)), i + np.arange(len(d))] = np.inf
        out.append(np.partition(d, k - 1, axis=1)[:, k - 1])
    return np.concatenate(out)


def _covered(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
    """Share of the points inside any ball, Kynkaanniemi et al. eq. 1 and 2."""
    hits = [(_squared_distances(points[i : i + BLOCK], centres) <= radii).any(1) for i in range(0, len(points), BLOCK)]
    return float(np.concatenate(hits).mean())


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall: the share of generated rows inside the manifold of the real ones, and of real rows
    inside that of the generated ones; a manifold is the balls that reach to each row's k-th nearest neighbour.

    Sets of equal size, as in the paper: otherwise the larger one's manifold is favoured.
    """
    real, generated = _pair(real, generated, least=k + 1)
    precision = _covered(generated, real, _radii(real, k))
    return precision, _covered(real, generated, _radii(generated, k))


@dataclasses.dataclass(frozen=True)
class Share:
    """hits of n, with Wilson's score interval."""

    hits: int
    n: int
    z: float = 1.959963984540054  # 95 %

    @property
    def value(self) -> float:
        return self.hits / self.n

    def interval(self) -> tuple[float, float]:
        if not 0 <= self.hits <= self.n or self.n < 1:
            raise OptionError(f"share: expected 0 to n hits of n >= 1, got {self.hits} of {self.n}")
        p, n, zz = self.value, self.n, self.z**2
        centre = (p + zz / (2 * n)) / (1 + zz / n)
        half = self.z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n)) / (1 + zz / n)
        return centre - half if self.hits else 0.0, centre + half if self.hits < n else 1.0  # exact at the ends
