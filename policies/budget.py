"""``budget``: stop at a number of tokens.

Rule: from ``max`` tokens on, cut at the next end of a sentence; ``grace`` tokens later, anywhere.
Source: budget forcing, s1, arXiv 2501.19393.
Cost: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.events import Command, Event, Stop, Thought
from policies.policy import Needs

__all__ = ["Budget"]

_SENTENCE_ENDS = (".", "!", "?", "\n", "。", "！", "？")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Budget:
    """Options of ``budget``: ``max`` and ``grace`` in tokens of the trace."""

    name: ClassVar[str] = "budget"
    max: int = 4096
    grace: int = 64

    def __post_init__(self) -> None:
        if self.max < 1 or self.grace < 0:
            raise ValueError("max must be at least 1 and grace 0")

    @property
    def needs(self) -> Needs:
        return Needs(thoughts=True)

    def start(self) -> BudgetStopper:
        return BudgetStopper(self)


class BudgetStopper:
    __slots__ = ("_policy",)

    def __init__(self, policy: Budget) -> None:
        self._policy = policy

    def observe(self, event: Event) -> Command | None:
        if not isinstance(event, Thought) or event.position < self._policy.max:
            return None
        if event.text.rstrip(" ").endswith(_SENTENCE_ENDS):
            return Stop("budget")
        if event.position >= self._policy.max + self._policy.grace:
            return Stop("budget-hard")
        return None
