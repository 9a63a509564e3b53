"""``stale``: stop when the trace comes to no new number.

Rule: a stretch is what the model thinks between two cues. Stop at the cue that ends the
``stretches``-th stretch in a row whose numbers were all in the trace before.
Cost: none. For traces that calculate; one without numbers is never stopped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, ReasoningChunk, Stop
from adjourn.policies.policy import Needs

__all__ = ["Stale"]

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Stale:
    """Options of ``stale``: ``stretches`` in a row; ``min_tokens`` of the trace, before which it
    never stops."""

    name: ClassVar[str] = "stale"
    stretches: int = 2
    min_tokens: int = 64

    def __post_init__(self) -> None:
        if self.stretches < 1 or self.min_tokens < 0:
            raise ValueError("stretches must be at least 1, min_tokens at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(cues=True, reasoning_chunks=True)

    def start(self) -> StaleStopper:
        return StaleStopper(self)


class StaleStopper:
    """One trace. The work for a token is constant: its text is kept until the next cue, where
    every number of the stretch is looked up once."""

    def __init__(self, policy: Stale) -> None:
        self._policy = policy
        self._stretch_texts: list[str] = []
        self._seen_numbers: set[str] = set()
        self._stale_count = 0

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, ReasoningChunk):
            self._stretch_texts.append(event.text)
            return None
        if not isinstance(event, Checkpoint):
            return None
        # A number may have come in several tokens: only the joined text holds it whole.
        numbers = set(_NUMBER.findall("".join(self._stretch_texts)))
        self._stretch_texts.clear()
        if not numbers:
            return None  # words alone say nothing of the calculation
        self._stale_count = self._stale_count + 1 if numbers <= self._seen_numbers else 0
        self._seen_numbers |= numbers
        if (
            self._stale_count >= self._policy.stretches
            and event.position >= self._policy.min_tokens
        ):
            return Stop("stale", event.position)
        return None
