"""Intervals by a paired bootstrap over prompts: all samples of a prompt are drawn together."""

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
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class ClusterBootstrap:
    """Which cluster each row belongs to, and how often each is drawn in each resample: the same
    draws for every estimate, so that differences are paired."""

    def __init__(self, row_clusters: Sequence[Hashable], *, seed: int = 0) -> None:
        places = {name: place for place, name in enumerate(dict.fromkeys(row_clusters))}
        self._cluster_of_row = np.array([places[name] for name in row_clusters])
        count = len(places)
        draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, _RESAMPLES)
        self._resample_counts = np.vstack([np.ones(count), draws])  # first the data as they are
        self._resample_sizes = self._resample_counts @ np.bincount(self._cluster_of_row)

    def _sums(self, rows: ArrayLike) -> NDArray[np.float64]:
        sums = np.bincount(self._cluster_of_row, weights=np.asarray(rows, dtype=float))
        drawn: NDArray[np.float64] = self._resample_counts @ sums
        return drawn

    def mean(self, rows: ArrayLike) -> Estimate:
        return _estimate(self._sums(rows) / self._resample_sizes)

    def difference(self, ours: ArrayLike, theirs: ArrayLike) -> Estimate:
        """Of the means."""
        return _estimate((self._sums(ours) - self._sums(theirs)) / self._resample_sizes)

    def ratio(self, ours: ArrayLike, theirs: ArrayLike) -> Estimate:
        """Of the sums."""
        return _estimate(self._sums(ours) / self._sums(theirs))


def _estimate(drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(drawn[1:], _QUANTILES)
    return Estimate(float(drawn[0]), float(low), float(high))
