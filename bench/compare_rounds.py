"""Two things measured in one run: interleaved rounds, medians, and the ratio round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def interleaved(ours: Callable[[], object], peer: Callable[[], object], rounds: int = 7) -> dict[str, float]:
    """Medians of both and of peer/ours per round (above 1: ours is faster), with the ratio's smallest and largest.

    A B, then B A, and so on, so that neither side always runs on a warmer or a busier machine.
    """
    ours(), peer()
    a, b = [], []
    for k in range(rounds):
        for first, fn in ((a, ours), (b, peer)) if k % 2 == 0 else ((b, peer), (a, ours)):
            first.append(seconds(fn))
    ratios = sorted(y / x for x, y in zip(a, b))
    return {
        "ours_ms": round(1e3 * statistics.median(a), 3),
        "peer_ms": round(1e3 * statistics.median(b), 3),
        "peer_over_ours": round(statistics.median(ratios), 4),
        "ratio_min": round(ratios[0], 4),
        "ratio_max": round(ratios[-1], 4),
        "rounds": rounds,
    }
