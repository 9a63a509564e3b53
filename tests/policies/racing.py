"""Drives a sampler as the server would, with answers that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.sampling import Answered, Begun, Choose, Failed, GiveUp, Open, Sampling, Sureness

__all__ = ["Race"]


class Race:
    """``answers``: the class of each trace's answer, None where it breaks off. ``lows`` and
    ``certainties``: how confident each was at its lowest, and how sure of its answer. ``came``:
    those that were shown. ``log``: what was shown and said."""

    def __init__(
        self,
        policy: Sampling,
        answers: Sequence[int | None],
        lows: Sequence[float] = (),
        certainties: Sequence[float | None] = (),
    ) -> None:
        self.given_up: list[int] = []
        self._lows = lows
        self._certainties = certainties
        self.opened = 0
        self.came: dict[int, int | None] = {}
        self.log: list[tuple[Any, Any]] = []
        self._sampler = policy.sample()
        self._answers = answers
        self._running: list[int] = []

    def run(self, order: Sequence[int]) -> Choose | None:
        """The choice; ``order`` says who of those that run is next. None where no trace is left."""
        choice, turn = self._show(Begun(0.0)), 0
        while choice is None and self._running:
            trace = self._running.pop(order[turn % len(order)] % len(self._running))
            turn += 1
            choice = self._end(trace, float(turn))
        return choice

    def _end(self, trace: int, at: float) -> Choose | None:
        if self._lows:
            self._running.append(trace)
            choice = self._show(Sureness(trace, self._lows[trace], 50, at))
            if choice is not None or trace in self.given_up:
                return choice
            self._running.remove(trace)
        label = self.came[trace] = self._answers[trace]
        if label is None:
            return self._show(Failed(trace, at))
        certainty = self._certainties[trace] if self._certainties else None
        return self._show(Answered(trace, str(label), label, 100, at, certainty))

    def _show(self, event: Any) -> Choose | None:
        for command in self._sampler.observe(event):
            self.log.append((event, command))
            match command:
                case Open(count):
                    assert count > 0
                    self._running += range(self.opened, self.opened + count)
                    self.opened += count
                case GiveUp(traces):
                    assert set(traces) <= set(self._running)
                    self.given_up += traces
                    self._running = [t for t in self._running if t not in traces]
                case Choose() as choice:
                    return choice
        return None
