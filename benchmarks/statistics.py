"""Intervals for what the benchmarks report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["mean_interval", "paired_difference", "share_interval"]

_RESAMPLES = 5000


def share_interval(right: Sequence[bool]) -> tuple[float, float, float]:
    """(share, low, high): Wilson's 95 % interval."""
    test = stats.binomtest(sum(right), len(right))
    interval = test.proportion_ci(method="wilson")
    return sum(right) / len(right), float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): 95 % by bootstrap over the problems."""
    data = np.asarray(values, dtype=float)
    return float(data.mean()), *_bootstrap(lambda rows: data[rows].mean(axis=1), len(data))


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, ratio: bool = False
) -> tuple[float, float, float]:
    """(ours - theirs, low, high) of the means, or of ``ours`` / ``theirs`` as a ratio of sums;
    95 % by bootstrap over the problems, each drawn with both its runs."""
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)

    def measure(rows: np.ndarray) -> np.ndarray:
        x, y = a[rows].mean(axis=1), b[rows].mean(axis=1)
        return x / y if ratio else x - y

    everything = np.arange(len(a))[None, :]
    return float(measure(everything)[0]), *_bootstrap(measure, len(a))


def _bootstrap(measure, size: int) -> tuple[float, float]:
    rows = np.random.default_rng(0).integers(0, size, (_RESAMPLES, size))
    low, high = np.percentile(measure(rows), (2.5, 97.5))
    return float(low), float(high)
