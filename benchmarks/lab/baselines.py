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

from benchmarks.lab.tape import Tape, Tapes

__all__ = ["Array", "Baselines", "Rows", "row"]

Array = NDArray[np.float64]
_CHANCES = 1000
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Rows:
    """A policy or a baseline, a value a trace. ``right`` and ``stopped`` are chances in [0, 1],
    ``net`` and ``position`` expected tokens."""

    name: str
    right: Array
    net: Array
    position: Array
    stopped: Array


class Baselines:
    """The baselines of these traces. A cut costs the tokens that are decoded until its answer
    begins, as a policy's does, unless ``instant``."""

    def __init__(self, tapes: Tapes, *, instant: bool = False) -> None:
        self._tapes = tapes.tapes
        self._full = row(t.ledger.reasoning for t in self._tapes)
        self._net = row(t.ledger.net for t in self._tapes)
        self._right = row(t.right(t.answer) for t in self._tapes)
        resume = 0.0 if instant else tapes.resume
        closing = len(tapes.marks.closing)
        self._behind = row(
            t.opening + closing + t.answer_tokens + resume / _pace(t) for t in self._tapes
        )
        cues = [sorted({p.position for p in t.places if p.kind == "cue"}) for t in self._tapes]
        self._cues = _padded(cues)
        self._cue_rights = _padded(
            [
                [t.right(t.trial(p).answer) for p in own]
                for t, own in zip(self._tapes, cues, strict=True)
            ]
        )
        # Mean costs of every budget and of every chance of a cut.
        budgets = np.arange(int(self._full.max()) + 2)
        self._budgets = row(self._cost(np.full_like(self._full, b)).mean() for b in budgets)
        self._chances = row(self._cues_cost(c / _CHANCES).mean() for c in range(_CHANCES + 1))

    def full(self) -> Rows:
        return Rows("full thinking", self._right, self._net, self._full, np.zeros_like(self._full))

    def none(self) -> Rows:
        """The trial answer before the first token."""
        return self._cut("no thinking", np.zeros_like(self._full))

    def oracle(self) -> Rows:
        settled = (tape.settled() for tape in self._tapes)
        places = row(np.inf if place is None else place for place in settled)
        return replace(self._cut("oracle", places), right=self._right)

    def budget(self, tokens: float) -> Rows:
        return self._cut(f"budget of {tokens:.0f}", np.full_like(self._full, tokens))

    def budget_of(self, net: float) -> Rows:
        """The budget with this mean net cost, as near as there is one."""

        # Cutting a trace just before its end costs more than letting it end, so costs may fall.
        fitting = np.flatnonzero(self._budgets <= net + _ROUNDING)
        return self.budget(float(fitting[-1]) if len(fitting) else 0.0)

    def random_cue(self, chance: float) -> Rows:
        """A cut at each cue with this chance: each trace's expectation."""
        return Rows(
            f"random cue, chance {chance:.2f}",
            self._expected(chance, self._cue_rights, self._right),
            self._cues_cost(chance),
            self._expected(chance, self._cues, self._full),
            self._expected(chance, np.ones_like(self._cues), np.zeros_like(self._full)),
        )

    def random_cue_of(self, net: float) -> Rows:
        """The chance with this mean net cost, as near as there is one."""
        fitting = np.flatnonzero(self._chances <= net + _ROUNDING)
        return self.random_cue(float(fitting[0]) / _CHANCES if len(fitting) else 1.0)

    def _expected(self, chance: float, at_cues: Array, whole: Array) -> Array:
        there = ~np.isnan(self._cues)
        weights = np.where(there, chance * (1 - chance) ** np.arange(there.shape[1]), 0.0)
        left = (1 - chance) ** there.sum(axis=1)
        summed: Array = (weights * np.nan_to_num(at_cues)).sum(axis=1) + left * whole
        return summed

    def _cues_cost(self, chance: float) -> Array:
        return self._expected(chance, self._cues + self._behind[:, None], self._net)

    def _cost(self, places: Array) -> Array:
        return np.where(places < self._full, places + self._behind, self._net)

    def _cut(self, name: str, places: Array) -> Rows:
        """Cut each trace at its place, where it is that long."""
        stopped = places < self._full
        right = self._right.copy()
        for index in np.flatnonzero(stopped):
            tape = self._tapes[index]
            right[index] = tape.right(tape.trial(int(places[index])).answer)
        position = np.minimum(places, self._full)
        return Rows(name, right, self._cost(places), position, stopped.astype(float))


def row(values: Iterable[float]) -> Array:
    return np.fromiter(values, dtype=float)


def _padded(rows: Sequence[Sequence[float]]) -> Array:
    """A matrix, with nan where a row is over."""
    made = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for index, values in enumerate(rows):
        made[index, : len(values)] = values
    return made


def _pace(tape: Tape) -> float:
    """Seconds a token of the trace."""
    times = [piece.at for piece in tape.pieces]
    tokens = tape.ledger.reasoning + tape.ledger.answer
    return max((times[-1] - times[0]) / max(tokens, 1), 1e-9)
