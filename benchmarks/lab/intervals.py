"""Confidence intervals by a paired bootstrap over prompts: all samples of a prompt are resampled
together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ClusterBootstrap", "Estimate"]

_RESAMPLES = 4000
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class ClusterBootstrap:
    """Estimates over rows that belong to clusters. All estimates use the same resamples, so
    differences are paired. ``row_clusters``: the cluster of each row."""

    def __init__(self, row_clusters: Sequence[Hashable], *, seed: int = 0) -> None:
        indices = {name: index for index, name in enumerate(dict.fromkeys(row_clusters))}
        self._cluster_of_row = np.array([indices[name] for name in row_clusters])
        count = len(indices)
        resamples = np.random.default_rng(seed).multinomial(count, [1 / count] * count, _RESAMPLES)
        self._resample_counts = np.vstack([np.ones(count), resamples])  # row 0: the data themselves
        self._resample_sizes = self._resample_counts @ np.bincount(self._cluster_of_row)

    def _sums(self, rows: ArrayLike) -> NDArray[np.float64]:
        sums = np.bincount(self._cluster_of_row, weights=np.asarray(rows, dtype=float))
        resampled: NDArray[np.float64] = self._resample_counts @ sums
        return resampled

    def mean(self, rows: ArrayLike) -> Estimate:
        return _estimate(self._sums(rows) / self._resample_sizes)

    def difference(self, ours: ArrayLike, theirs: ArrayLike) -> Estimate:
        """The difference of the means."""
        return _estimate((self._sums(ours) - self._sums(theirs)) / self._resample_sizes)

    def ratio(self, ours: ArrayLike, theirs: ArrayLike) -> Estimate:
        """The ratio of the sums."""
        return _estimate(self._sums(ours) / self._sums(theirs))


def _estimate(resampled: NDArray[np.float64]) -> Estimate:
    """From the value of the data, followed by those of the resamples."""
    low, high = np.quantile(resampled[1:], _QUANTILES)
    return Estimate(float(resampled[0]), float(low), float(high))
