"""How sure a trace is of what it writes: the mean confidence of its latest tokens."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from policies.events import Command, Event, Thought
from policies.policy import Needs, Policy

__all__ = ["TOP", "Meter"]

TOP = 20
"""Log-probabilities of each token that are looked at."""


class Meter:
    """Stands around the policy of one trace, of which it is both policy and stopper.

    A token's confidence is the negative mean of the log-probabilities of the ``TOP`` most probable
    tokens at its place, in nats: high where one of them has nearly all. ``lowest`` is the least
    mean of ``span`` tokens in a row, at ``position``; of a shorter trace, its mean. It costs one
    addition a token.
    """

    name: ClassVar[str] = "meter"

    def __init__(self, policy: Policy, span: int) -> None:
        self.position = 0
        self.whole = False
        self._policy = policy
        self._stopper = policy.start()
        self._shown = policy.needs.thoughts
        self._recent: deque[float] = deque(maxlen=span)
        self._sum = 0.0
        self._lowest = 0.0

    @property
    def needs(self) -> Needs:
        return self._policy.needs | Needs(thoughts=True, logprobs=TOP)

    @property
    def lowest(self) -> float | None:
        if self.whole:
            return self._lowest
        return self._sum / len(self._recent) if self._recent else None

    def start(self) -> Meter:
        return self

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, Thought):
            for told in event.logprobs:
                if told:
                    self._add(-sum(told) / len(told), event.position)
            if not self._shown:
                return None
        return self._stopper.observe(event)

    def _add(self, confidence: float, position: int) -> None:
        recent = self._recent
        full = len(recent) == recent.maxlen
        self._sum += confidence - (recent[0] if full else 0.0)
        recent.append(confidence)
        if len(recent) < (recent.maxlen or 0):
            return
        mean = self._sum / len(recent)
        if not self.whole or mean < self._lowest:
            self.whole, self._lowest, self.position = True, mean, position
