"""``budget``: reason for at most ``max`` tokens, and for at least ``min``.

Rule: from ``max`` tokens on, cut at the next sentence end outside code fences and strings;
``grace`` tokens later, cut anywhere. If the model ends the trace before ``min`` tokens, insert
"Wait" in place of the end, at most ``waits`` times.
Units: tokens of the trace.
Source: budget forcing, s1, arXiv 2501.19393; "Wait" also in Self-Correction Bench.
Deviations: the paper cuts at the token; ``grace`` is ours, so that the kept text ends a sentence.
Cost: none for ``max``; for ``min``, the tokens after each "Wait" and a new stream for it.
Patience: ``max`` is multiplied; ``min`` is lowered if it would exceed ``max``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from adjourn.policies.events import Command, Event, Extend, ReasoningChunk, Stop, TraceEnding
from adjourn.policies.patience import scale_count
from adjourn.policies.policy import Needs
from adjourn.policies.text.fences import FenceScanner

__all__ = ["Budget"]

_SENTENCE_ENDS = (".", "!", "?", "\n", "。", "！", "？")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Budget:
    """Options of ``budget``: ``max``, ``grace`` and ``min`` in tokens of the trace. A ``min`` of 0
    never extends the trace."""

    name: ClassVar[str] = "budget"
    max: int = 4096
    grace: int = 64
    min: int = 0
    waits: int = 4

    def __post_init__(self) -> None:
        if self.max < 1 or self.grace < 0 or self.waits < 0:
            raise ValueError("max must be at least 1, grace and waits 0")
        if not 0 <= self.min <= self.max:
            raise ValueError("min must be at least 0 and at most max")

    @property
    def needs(self) -> Needs:
        if not self.min:
            return Needs(reasoning_chunks=True)
        return Needs(
            reasoning_chunks=True,
            trace_endings=True,
            inducers=frozenset({"wait", "wait-on-newline"}),
        )

    def with_patience(self, factor: float) -> Budget:
        most = scale_count(self.max, factor)
        return replace(self, max=most, min=min(self.min, most))

    def start(self) -> BudgetStopper:
        return BudgetStopper(self)


class BudgetStopper:
    """One trace. State, changed by ``observe`` only: how often the trace may still be extended, the
    open fences and strings, and the length of the text in characters."""

    __slots__ = ("_fences", "_policy", "_text_length", "_waits_left")

    def __init__(self, policy: Budget) -> None:
        self._policy = policy
        self._waits_left = policy.waits
        self._fences = FenceScanner()
        self._text_length = 0

    def observe(self, event: Event) -> Command | None:
        if (
            isinstance(event, TraceEnding)
            and event.position < self._policy.min
            and self._waits_left
        ):
            self._waits_left -= 1
            return Extend()
        if not isinstance(event, ReasoningChunk):
            return None
        self._fences.feed(event.text, self._text_length)
        self._text_length += len(event.text)
        if event.position < self._policy.max:
            return None
        if event.text.rstrip(" ").endswith(_SENTENCE_ENDS) and not self._fences.is_open:
            return Stop("budget")
        if event.position >= self._policy.max + self._policy.grace:
            return Stop("budget-hard")
        return None
