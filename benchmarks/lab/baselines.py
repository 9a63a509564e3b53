"""What a policy must be better than: rivals that know nothing, and one that knows all.

They are computed from the places that were recorded, not played: a budget that cuts at exactly b
tokens, a cut at each cue with the chance q, and the oracle, which stops at the first place from
which the trial answer is the final one for good. None of them pays for a probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adjourn.lab.replay_trace import ReplayDataset, ReplayTrace

__all__ = ["Baselines", "FloatArray", "PerTraceScores", "to_array"]

FloatArray = NDArray[np.float64]
_PROBABILITY_STEPS = 1000
_COST_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class PerTraceScores:
    """A policy or a baseline, a value a trace. ``right`` and ``stopped`` are chances in [0, 1],
    ``net`` and ``position`` expected tokens."""

    name: str
    correct: FloatArray
    net_tokens: FloatArray
    position: FloatArray
    stopped: FloatArray


class Baselines:
    """The baselines of these traces. A cut costs the tokens that are decoded until its answer
    begins, as a policy's does, unless ``instant``."""

    def __init__(self, dataset: ReplayDataset, *, instant: bool = False) -> None:
        self._traces = dataset.traces
        self._full_lengths = to_array(t.ledger.reasoning for t in self._traces)
        self._full_net_tokens = to_array(t.ledger.net for t in self._traces)
        self._full_correct = to_array(t.is_correct(t.answer) for t in self._traces)
        resume = 0.0 if instant else dataset.resume_seconds
        closing = len(dataset.dialect.closing)
        self._tokens_after_cut = to_array(
            t.opening_tokens + closing + t.answer_tokens + resume / _seconds_per_token(t)
            for t in self._traces
        )
        cues = [
            sorted({p.position for p in t.checkpoints if p.kind == "cue"}) for t in self._traces
        ]
        self._cue_positions = _pad_rows(cues)
        self._correct_at_cues = _pad_rows(
            [
                [t.is_correct(t.trial_answer_at(p).answer) for p in own]
                for t, own in zip(self._traces, cues, strict=True)
            ]
        )
        # Mean costs of every budget and of every chance of a cut.
        budgets = np.arange(int(self._full_lengths.max()) + 2)
        self._mean_cost_by_budget = to_array(
            self._cut_cost(np.full_like(self._full_lengths, b)).mean() for b in budgets
        )
        self._mean_cost_by_probability = to_array(
            self._random_cue_cost(c / _PROBABILITY_STEPS).mean()
            for c in range(_PROBABILITY_STEPS + 1)
        )

    def full_thinking(self) -> PerTraceScores:
        return PerTraceScores(
            "full thinking",
            self._full_correct,
            self._full_net_tokens,
            self._full_lengths,
            np.zeros_like(self._full_lengths),
        )

    def no_thinking(self) -> PerTraceScores:
        """The trial answer before the first token."""
        return self._cut_at("no thinking", np.zeros_like(self._full_lengths))

    def oracle(self) -> PerTraceScores:
        settled = (tape.settled_position() for tape in self._traces)
        places = to_array(np.inf if place is None else place for place in settled)
        return replace(self._cut_at("oracle", places), correct=self._full_correct)

    def budget(self, tokens: float) -> PerTraceScores:
        return self._cut_at(f"budget of {tokens:.0f}", np.full_like(self._full_lengths, tokens))

    def budget_at_cost(self, net_tokens: float) -> PerTraceScores:
        """The budget with this mean net cost, as near as there is one."""

        # Cutting a trace just before its end costs more than letting it end, so costs may fall.
        fitting = np.flatnonzero(self._mean_cost_by_budget <= net_tokens + _COST_TOLERANCE)
        return self.budget(float(fitting[-1]) if len(fitting) else 0.0)

    def random_cue(self, probability: float) -> PerTraceScores:
        """A cut at each cue with this chance: each trace's expectation."""
        return PerTraceScores(
            f"random cue, chance {probability:.2f}",
            self._expected_value(probability, self._correct_at_cues, self._full_correct),
            self._random_cue_cost(probability),
            self._expected_value(probability, self._cue_positions, self._full_lengths),
            self._expected_value(
                probability, np.ones_like(self._cue_positions), np.zeros_like(self._full_lengths)
            ),
        )

    def random_cue_at_cost(self, net_tokens: float) -> PerTraceScores:
        """The chance with this mean net cost, as near as there is one."""
        fitting = np.flatnonzero(self._mean_cost_by_probability <= net_tokens + _COST_TOLERANCE)
        return self.random_cue(float(fitting[0]) / _PROBABILITY_STEPS if len(fitting) else 1.0)

    def _expected_value(self, chance: float, at_cues: FloatArray, whole: FloatArray) -> FloatArray:
        there = ~np.isnan(self._cue_positions)
        weights = np.where(there, chance * (1 - chance) ** np.arange(there.shape[1]), 0.0)
        left = (1 - chance) ** there.sum(axis=1)
        summed: FloatArray = (weights * np.nan_to_num(at_cues)).sum(axis=1) + left * whole
        return summed

    def _random_cue_cost(self, chance: float) -> FloatArray:
        return self._expected_value(
            chance, self._cue_positions + self._tokens_after_cut[:, None], self._full_net_tokens
        )

    def _cut_cost(self, places: FloatArray) -> FloatArray:
        return np.where(
            places < self._full_lengths, places + self._tokens_after_cut, self._full_net_tokens
        )

    def _cut_at(self, name: str, places: FloatArray) -> PerTraceScores:
        """Cut each trace at its place, where it is that long."""
        stopped = places < self._full_lengths
        right = self._full_correct.copy()
        for index in np.flatnonzero(stopped):
            tape = self._traces[index]
            right[index] = tape.is_correct(tape.trial_answer_at(int(places[index])).answer)
        position = np.minimum(places, self._full_lengths)
        return PerTraceScores(name, right, self._cut_cost(places), position, stopped.astype(float))


def to_array(values: Iterable[float]) -> FloatArray:
    return np.fromiter(values, dtype=float)


def _pad_rows(rows: Sequence[Sequence[float]]) -> FloatArray:
    """A matrix, with nan where a row is over."""
    made = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for index, values in enumerate(rows):
        made[index, : len(values)] = values
    return made


def _seconds_per_token(trace: ReplayTrace) -> float:
    """Seconds a token of the trace."""
    times = [piece.at for piece in trace.chunks]
    tokens = trace.ledger.reasoning + trace.ledger.answer
    return max((times[-1] - times[0]) / max(tokens, 1), 1e-9)
