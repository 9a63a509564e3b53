"""Baselines for policies, computed from the recorded checkpoints without a replay.

A budget that cuts at exactly b tokens; a random cue, which cuts at each cue with probability q; and
the oracle, which cuts at the first checkpoint from which on every trial answer is the final answer.
None of them pays for probes.
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
    """The scores of a policy or a baseline, one array entry for each trace. ``correct`` and
    ``stopped`` are probabilities in [0, 1], ``net_tokens`` and ``position`` expected tokens."""

    name: str
    correct: FloatArray
    net_tokens: FloatArray
    position: FloatArray
    stopped: FloatArray


class Baselines:
    """The baselines of a dataset. As with a policy, a cut also costs the tokens that are decoded
    until its answer begins, unless ``instant``."""

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
        # Mean net tokens of every budget, and of every probability of a cut.
        budgets = np.arange(int(self._full_lengths.max()) + 2)
        self._mean_cost_by_budget = to_array(
            self._cut_cost(np.full_like(self._full_lengths, b)).mean() for b in budgets
        )
        self._mean_cost_by_probability = to_array(
            self._random_cue_cost(step / _PROBABILITY_STEPS).mean()
            for step in range(_PROBABILITY_STEPS + 1)
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
        """Cut before the first token."""
        return self._cut_at("no thinking", np.zeros_like(self._full_lengths))

    def oracle(self) -> PerTraceScores:
        settled = (trace.settled_position() for trace in self._traces)
        positions = to_array(np.inf if one is None else one for one in settled)
        return replace(self._cut_at("oracle", positions), correct=self._full_correct)

    def budget(self, tokens: float) -> PerTraceScores:
        return self._cut_at(f"budget of {tokens:.0f}", np.full_like(self._full_lengths, tokens))

    def budget_at_cost(self, net_tokens: float) -> PerTraceScores:
        """The largest budget whose mean net tokens are at most ``net_tokens``."""
        # The cost does not rise monotonically: a cut just before the end of a trace costs more than
        # none.
        fitting = np.flatnonzero(self._mean_cost_by_budget <= net_tokens + _COST_TOLERANCE)
        return self.budget(float(fitting[-1]) if len(fitting) else 0.0)

    def random_cue(self, probability: float) -> PerTraceScores:
        """A cut at each cue with this probability; the expected values of each trace."""
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
        """The lowest probability whose mean net tokens are at most ``net_tokens``."""
        fitting = np.flatnonzero(self._mean_cost_by_probability <= net_tokens + _COST_TOLERANCE)
        return self.random_cue(float(fitting[0]) / _PROBABILITY_STEPS if len(fitting) else 1.0)

    def _expected_value(self, q: float, at_cues: FloatArray, uncut: FloatArray) -> FloatArray:
        """``at_cues``: the value of a cut at each cue (traces x cues); ``uncut``: without a cut."""
        has_cue = ~np.isnan(self._cue_positions)
        weights = np.where(has_cue, q * (1 - q) ** np.arange(has_cue.shape[1]), 0.0)
        uncut_probability = (1 - q) ** has_cue.sum(axis=1)
        at_cut = (weights * np.nan_to_num(at_cues)).sum(axis=1)
        expected: FloatArray = at_cut + uncut_probability * uncut
        return expected

    def _random_cue_cost(self, q: float) -> FloatArray:
        return self._expected_value(
            q, self._cue_positions + self._tokens_after_cut[:, None], self._full_net_tokens
        )

    def _cut_cost(self, positions: FloatArray) -> FloatArray:
        return np.where(
            positions < self._full_lengths,
            positions + self._tokens_after_cut,
            self._full_net_tokens,
        )

    def _cut_at(self, name: str, positions: FloatArray) -> PerTraceScores:
        """Cut each trace at its position, unless it is shorter."""
        stopped = positions < self._full_lengths
        correct = self._full_correct.copy()
        for index in np.flatnonzero(stopped):
            trace = self._traces[index]
            correct[index] = trace.is_correct(trace.trial_answer_at(int(positions[index])).answer)
        position = np.minimum(positions, self._full_lengths)
        return PerTraceScores(
            name, correct, self._cut_cost(positions), position, stopped.astype(float)
        )


def to_array(values: Iterable[float]) -> FloatArray:
    return np.fromiter(values, dtype=float)


def _pad_rows(rows: Sequence[Sequence[float]]) -> FloatArray:
    """A matrix; short rows are padded with nan."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for index, values in enumerate(rows):
        padded[index, : len(values)] = values
    return padded


def _seconds_per_token(trace: ReplayTrace) -> float:
    """Of the whole response."""
    times = [chunk.at for chunk in trace.chunks]
    tokens = trace.ledger.reasoning + trace.ledger.answer
    return max((times[-1] - times[0]) / max(tokens, 1), 1e-9)
