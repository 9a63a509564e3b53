"""Drives a sampler as the server would, with answers that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.sampling import Answered, Begun, Choose, Failed, GiveUp, Open, Sampling

__all__ = ["Race"]


class Race:
    """``answers``: the class of each trace's answer, None where it breaks off. ``came``: those that
    were shown. ``log``: what was shown and said."""

    def __init__(self, policy: Sampling, answers: Sequence[int | None]) -> None:
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
            label = self.came[trace] = self._answers[trace]
            if label is None:
                choice = self._show(Failed(trace, float(turn)))
            else:
                choice = self._show(Answered(trace, str(label), label, 100, float(turn)))
        return choice

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
                    self._running = [t for t in self._running if t not in traces]
                case Choose() as choice:
                    return choice
        return None
