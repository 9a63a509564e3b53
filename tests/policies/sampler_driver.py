"""Drive a sampler as the gateway does, with scripted answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adjourn.policies.sampling import (
    AbortTraces,
    ChooseTrace,
    ConfidenceReport,
    OpenTraces,
    RequestStarted,
    SamplingPolicy,
    TraceAnswered,
    TraceFailed,
)

__all__ = ["SamplerDriver"]


class SamplerDriver:
    """``answers``: the class of each trace's answer, None if the trace fails.
    ``lowest_confidences`` and ``certainties``: those of each trace, if it has any.

    State, changed by ``run``: ``shown_labels`` has the answers that the sampler got, ``log`` each
    command with its event, ``aborted`` and ``opened_count`` the traces.
    """

    def __init__(
        self,
        policy: SamplingPolicy,
        answers: Sequence[int | None],
        lowest_confidences: Sequence[float] = (),
        certainties: Sequence[float | None] = (),
    ) -> None:
        self.aborted: list[int] = []
        self._lowest_confidences = lowest_confidences
        self._certainties = certainties
        self.opened_count = 0
        self.shown_labels: dict[int, int | None] = {}
        self.log: list[tuple[Any, Any]] = []
        self._sampler = policy.start_sampler()
        self._answers = answers
        self._running: list[int] = []

    def run(self, order: Sequence[int]) -> ChooseTrace | None:
        """The choice, or None if no trace is left. ``order``: which of the running traces ends
        next, as indices modulo their number."""
        choice, turn = self._observe(RequestStarted(0.0)), 0
        while choice is None and self._running:
            trace = self._running.pop(order[turn % len(order)] % len(self._running))
            turn += 1
            choice = self._end_trace(trace, float(turn))
        return choice

    def _end_trace(self, trace: int, at: float) -> ChooseTrace | None:
        if self._lowest_confidences:
            self._running.append(trace)
            choice = self._observe(ConfidenceReport(trace, self._lowest_confidences[trace], 50, at))
            if choice is not None or trace in self.aborted:
                return choice
            self._running.remove(trace)
        label = self.shown_labels[trace] = self._answers[trace]
        if label is None:
            return self._observe(TraceFailed(trace, at))
        certainty = self._certainties[trace] if self._certainties else None
        return self._observe(TraceAnswered(trace, str(label), label, 100, at, certainty))

    def _observe(self, event: Any) -> ChooseTrace | None:
        for command in self._sampler.observe(event):
            self.log.append((event, command))
            match command:
                case OpenTraces(count):
                    assert count > 0
                    self._running += range(self.opened_count, self.opened_count + count)
                    self.opened_count += count
                case AbortTraces(traces):
                    assert set(traces) <= set(self._running)
                    self.aborted += traces
                    self._running = [t for t in self._running if t not in traces]
                case ChooseTrace() as choice:
                    return choice
        return None
