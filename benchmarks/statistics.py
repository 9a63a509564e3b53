"""Intervals for what the benchmarks report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["mean_ratio", "paired_difference", "share_interval"]

_RESAMPLES = 5000


def share_interval(correct: Sequence[bool], samples: int = 1) -> tuple[float, float, float]:
    """(share, low, high): Wilson's 95 % interval. Of several samples a problem, as if each problem
    had been asked once, which is too wide rather than too narrow."""
    share, problems = sum(correct) / len(correct), len(correct) // samples
    interval = stats.binomtest(round(share * problems), problems).proportion_ci(method="wilson")
    return share, float(interval.low), float(interval.high)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, ratio: bool = False, samples: int = 1
) -> tuple[float, float, float]:
    """(ours - theirs, low, high) of the means, or of ``ours`` / ``theirs`` as a ratio of sums;
    95 % by bootstrap over the problems, each drawn with all its runs. Of ``samples`` runs a
    problem, each stands as many places behind the one before as there are problems."""
    a, b = (np.reshape(runs, (samples, -1)).mean(axis=0) for runs in (ours, theirs))

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
