"""Measure the confidence of a trace: the mean confidence of its latest tokens."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from adjourn.policies.events import Command, Event, ReasoningChunk
from adjourn.policies.policy import Needs, Policy

__all__ = ["CONFIDENCE_TOP_LOGPROBS", "ConfidenceMeter"]

CONFIDENCE_TOP_LOGPROBS = 20
"""How many log-probabilities of each token are averaged."""


class ConfidenceMeter:
    """Wraps the policy of one trace; it is both a policy and the stopper of that trace.

    A token's confidence is the negative mean log-probability, in nats, of the
    ``CONFIDENCE_TOP_LOGPROBS`` most probable tokens at its place: it is high if one of them has
    nearly all the probability. Constant work a token.

    State, changed by ``observe`` only:

    lowest           the lowest mean confidence over ``window`` consecutive tokens, in nats; of a
                     shorter trace, its mean; None before the first token
    lowest_position  tokens of the trace where that window ends
    window_filled    the trace has had a whole window
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
        """Itself: it serves one trace only."""
        return self

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, ReasoningChunk):
            for logprobs in event.logprobs:
                if logprobs:
                    self._add(-sum(logprobs) / len(logprobs), event.position)
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
