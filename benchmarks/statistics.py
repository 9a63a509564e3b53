"""Intervals for what the benchmarks report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["mean_ratio", "paired_difference", "share_interval"]

_RESAMPLES = 5000


def share_interval(right: Sequence[bool]) -> tuple[float, float, float]:
    """(share, low, high): Wilson's 95 % interval."""
    test = stats.binomtest(sum(right), len(right))
    interval = test.proportion_ci(method="wilson")
    return sum(right) / len(right), float(interval.low), float(interval.high)


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
    rows = np.random.default_rng(0).integers(0, len(a), (_RESAMPLES, len(a)))
    low, high = np.percentile(measure(rows), (2.5, 97.5))
    return float(measure(everything)[0]), float(low), float(high)


def mean_ratio(rounds: Sequence[float]) -> tuple[float, float, float]:
    """(geometric mean, low, high) of the rounds' ratios: Student's 95 % interval of the logarithms,
    at least two rounds."""
    logs = np.log(np.asarray(rounds, dtype=float))
    margin = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
    return tuple(float(np.exp(logs.mean() + side * margin)) for side in (0, -1, 1))
