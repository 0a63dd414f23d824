"""How good a set of generated digits is, by the judge and against the real digits. Images are uint8 [n, H, W, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..training.data import mnist5k
from . import metrics
from .judge import SIZE, Judge, to_input

RESAMPLES = 200


def label_accuracy(judge: Judge, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Share of images that the judge gives the label they were asked for, in all and per digit.  labels int64 [n]"""
    right = judge.predict(images) == labels
    share = metrics.Share(int(right.sum()), len(right))
    return {
        "n": share.n,
        "correct": share.hits,
        "accuracy": share.value,
        "interval95": list(share.interval()),
        "per_digit": {str(k): float(right[labels == k].mean()) for k in np.unique(labels)},
    }


def distribution(judge: Judge, images: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """FID@digits and KID@digits against the training digits, precision and recall against the held-out ones.

    Every figure has its floor beside it: the same of real digits, the 500 held out. FID depends on the number of
    images, so it is also given for as many samples as there are held-out digits. Precision and recall are means over
    blocks of that size.
    """
    train, held = mnist5k("train"), mnist5k("held_out")
    real, real_held = judge.features(train.images), judge.features(held.images)
    made = judge.features(images)
    size = min(len(made), len(real_held))
    order = np.random.default_rng(seed).permutation
    real_held = real_held[order(len(real_held))]  # the set is sorted by digit, blocks must not be
    real_mixed = real[order(len(real))]
    p, r = _blocks(real_held[:size], made, size)
    p_real, r_real = _blocks(real_held[:size], real_mixed, size)
    return {
        "features": "64-dimensional penultimate layer of the judge",
        "n": len(made),
        "reference": f"the {len(real)} training digits",
        "fid": metrics.fid(made, real),
        "fid_interval95": list(metrics.bootstrap(metrics.fid, made, real, resamples=resamples, seed=seed)),
        "kid": metrics.kid(made, real),
        "kid_interval95": list(metrics.kid_interval(made, real, resamples=resamples, seed=seed)),
        "same_n": {"n": size, "fid": metrics.fid(made[:size], real), "kid": metrics.kid(made[:size], real)},
        "floor": {
            "n": size,
            "fid": metrics.fid(real_held[:size], real),
            "kid": metrics.kid(real_held[:size], real),
            "precision": p_real,
            "recall": r_real,
        },
        "precision": p,
        "recall": r,
        "k": 3,
        "resamples": resamples,
    }


def _blocks(held: np.ndarray, other: np.ndarray, size: int) -> tuple[float, float]:
    pairs = [metrics.precision_recall(held, other[i : i + size]) for i in range(0, len(other) - size + 1, size)]
    precision, recall = np.mean(pairs, axis=0)
    return float(precision), float(recall)


def memorisation(images: np.ndarray) -> dict[str, Any]:
    """Distance in pixels (0 to 1 each, Euclidean over the image) to the nearest training digit: of the samples, and of
    the held-out digits, which nobody can have memorised. `nearer` is the share of samples nearer than
    99 % of the held-out."""
    train, held = mnist5k("train"), mnist5k("held_out")
    reference = _pixels(train.images)
    of_samples = metrics.nearest_distances(_pixels(images), reference)
    of_held = metrics.nearest_distances(_pixels(held.images), reference)
    threshold = float(np.quantile(of_held, 0.01))
    return {
        "n": len(images),
        "samples": _quantiles(of_samples),
        "held_out": _quantiles(of_held),
        "threshold": threshold,
        "nearer": float((of_samples < threshold).mean()),
        "copies": int((of_samples < 1e-3).sum()),
    }


def _pixels(images: np.ndarray) -> np.ndarray:
    return (to_input(images).numpy().reshape(len(images), SIZE * SIZE).astype(np.float64) + 1) / 2


def _quantiles(values: np.ndarray) -> dict[str, float]:
    names = {"min": 0.0, "q01": 0.01, "q10": 0.1, "median": 0.5, "q90": 0.9}
    return {name: float(np.quantile(values, q)) for name, q in names.items()}
