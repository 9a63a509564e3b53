"""How sure a trace is of what it writes: the mean confidence of its latest tokens."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from adjourn.policies.events import Command, Event, ReasoningChunk
from adjourn.policies.policy import Needs, Policy

__all__ = ["CONFIDENCE_TOP_LOGPROBS", "ConfidenceMeter"]

CONFIDENCE_TOP_LOGPROBS = 20
"""Log-probabilities of each token that are looked at."""


class ConfidenceMeter:
    """Stands around the policy of one trace, of which it is both policy and stopper.

    A token's confidence is the negative mean of the log-probabilities of the ``TOP`` most probable
    tokens at its place, in nats: high where one of them has nearly all. ``lowest`` is the least
    mean of ``span`` tokens in a row, at ``position``; of a shorter trace, its mean. It costs one
    addition a token.
    """

    name: ClassVar[str] = "meter"

    def __init__(self, policy: Policy, window: int) -> None:
        self.lowest_position = 0
        self.window_filled = False
        self._policy = policy
        self._stopper = policy.start()
        self._forwards_chunks = policy.needs.reasoning_chunks
        self._recent_confidences: deque[float] = deque(maxlen=window)
        self._sum = 0.0
        self._lowest = 0.0

    @property
    def needs(self) -> Needs:
        return self._policy.needs | Needs(reasoning_chunks=True, logprobs=CONFIDENCE_TOP_LOGPROBS)

    @property
    def lowest(self) -> float | None:
        if self.window_filled:
            return self._lowest
        return self._sum / len(self._recent_confidences) if self._recent_confidences else None

    def start(self) -> ConfidenceMeter:
        return self

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, ReasoningChunk):
            for told in event.logprobs:
                if told:
                    self._add(-sum(told) / len(told), event.position)
            if not self._forwards_chunks:
                return None
        return self._stopper.observe(event)

    def _add(self, confidence: float, position: int) -> None:
        recent = self._recent_confidences
        full = len(recent) == recent.maxlen
        self._sum += confidence - (recent[0] if full else 0.0)
        recent.append(confidence)
        if len(recent) < (recent.maxlen or 0):
            return
        mean = self._sum / len(recent)
        if not self.window_filled or mean < self._lowest:
            self.window_filled, self._lowest, self.lowest_position = True, mean, position
