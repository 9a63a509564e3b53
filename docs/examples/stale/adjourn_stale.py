"""``stale``: stop when the trace produces no new number.

Rule: a stretch is the text between two cues. Stop at the cue that ends the ``stretches``-th stretch
in a row whose numbers all occurred before.
Units: stretches; tokens of the trace.
Cost: none. For traces that calculate; a trace without numbers is never stopped.
Patience: ``stretches`` is multiplied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from adjourn import Checkpoint, Command, Event, Needs, ReasoningChunk, Stop

__all__ = ["Stale", "StaleStopper"]

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Stale:
    """Options of ``stale``: ``stretches`` in a row; ``min_tokens``: tokens of the trace before
    which it never stops."""

    name: ClassVar[str] = "stale"
    stretches: int = 2
    min_tokens: int = 64

    def __post_init__(self) -> None:
        if self.stretches < 1 or self.min_tokens < 0:
            raise ValueError("stretches must be at least 1, min_tokens at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(cues=True, reasoning_chunks=True)

    def with_patience(self, factor: float) -> Stale:
        return replace(self, stretches=max(1, round(self.stretches * factor)))

    def start(self) -> StaleStopper:
        return StaleStopper(self)


class StaleStopper:
    """One trace. The work for a token is constant: its text is kept until the next cue, where each
    number of the stretch is looked up once.

    State, changed by ``observe`` only: the texts of the current stretch, the numbers of the
    stretches before it, and the number of stale stretches in a row.
    """

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
        # A number may be split over several tokens: only the joined text has it whole.
        numbers = set(_NUMBER.findall("".join(self._stretch_texts)))
        self._stretch_texts.clear()
        if not numbers:
            return None  # a stretch without numbers does not count
        self._stale_count = self._stale_count + 1 if numbers <= self._seen_numbers else 0
        self._seen_numbers |= numbers
        if (
            self._stale_count >= self._policy.stretches
            and event.position >= self._policy.min_tokens
        ):
            return Stop("stale", event.position)
        return None
