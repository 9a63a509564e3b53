"""Estimates with confidence intervals for the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["mean_ratio", "paired_difference", "share_interval"]

_RESAMPLES = 5000


def share_interval(correct: Sequence[bool], samples: int = 1) -> tuple[float, float, float]:
    """(share, low, high): the share of right answers with Wilson's 95 % interval.

    With several ``samples`` per problem, the interval is that of one sample per problem, which is
    too wide rather than too narrow.
    """
    share, problem_count = sum(correct) / len(correct), len(correct) // samples
    interval = stats.binomtest(round(share * problem_count), problem_count).proportion_ci(
        method="wilson"
    )
    return share, float(interval.low), float(interval.high)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, ratio: bool = False, samples: int = 1
) -> tuple[float, float, float]:
    """(estimate, low, high): the difference of the means of ``ours`` and ``theirs``, or with
    ``ratio`` the ratio of their sums, with a 95 % bootstrap interval over problems.

    Both hold all problems in the same order, repeated ``samples`` times. A problem is resampled
    with all its samples.
    """
    a, b = (np.reshape(runs, (samples, -1)).mean(axis=0) for runs in (ours, theirs))

    def measure(rows: np.ndarray) -> np.ndarray:
        x, y = a[rows].mean(axis=1), b[rows].mean(axis=1)
        return x / y if ratio else x - y

    all_problems = np.arange(len(a))[None, :]
    rows = np.random.default_rng(0).integers(0, len(a), (_RESAMPLES, len(a)))
    low, high = np.percentile(measure(rows), (2.5, 97.5))
    return float(measure(all_problems)[0]), float(low), float(high)


def mean_ratio(rounds: Sequence[float]) -> tuple[float, float, float]:
    """(geometric mean, low, high) of the ratios of at least two rounds: Student's 95 % interval of
    their logarithms."""
    logs = np.log(np.asarray(rounds, dtype=float))
    margin = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
    return tuple(float(np.exp(logs.mean() + side * margin)) for side in (0, -1, 1))
