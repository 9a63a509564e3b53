"""``first-try``: stop at the first answers that the trace itself states.

Rule: count the sentences that state an answer (``\\boxed{…}``, "the answer is …", "the result is
…"); stop at the end of the k-th. k is ``easy`` for an easy question and ``hard`` for a hard one; a
question is hard if its first answer took more than ``easy_tokens`` tokens.
Units: stated answers; tokens of the trace.
Source: First Try Matters, arXiv 2510.08308.
Deviations: in the paper one trained model finds the answers and another one classifies the question
from its text; here both are read from the trace, which needs no further model.
Cost: none. It finds only answers that are stated in these words.
Patience: ``easy`` and ``hard`` are multiplied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, Stop
from adjourn.policies.patience import scale_count
from adjourn.policies.policy import Needs

__all__ = ["FirstTry"]

# A question, a condition or a negation states no answer.
_ANSWER_STATEMENT = re.compile(
    r"\\boxed\s*\{\s*[^}\s]"
    r"|\b(?:answer|result|solution)(?:\s+(?:should|must|would))?\s+(?:is|be|equals|=)\b\s*:?\s*"
    r"(?!(?:not|wrong|unclear|in|the same)\b)[^\s?.]",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"\?\s*$|\b(?:if|whether|unless)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FirstTry:
    """Options of ``first-try``: ``easy`` and ``hard`` in stated answers (1 to 3 in the paper),
    ``easy_tokens`` in tokens of the trace."""

    name: ClassVar[str] = "first-try"
    easy: int = 1
    hard: int = 3
    easy_tokens: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.easy <= self.hard:
            raise ValueError("easy must be at least 1, and hard at least easy")
        if self.easy_tokens < 0:
            raise ValueError("easy_tokens must be at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(sentences=True)

    def with_patience(self, factor: float) -> FirstTry:
        easy, hard = scale_count(self.easy, factor), scale_count(self.hard, factor)
        return replace(self, easy=easy, hard=hard)

    def start(self) -> FirstTryStopper:
        return FirstTryStopper(self)


class FirstTryStopper:
    """One trace. State, changed by ``observe`` only: the answers stated so far, and how many are
    required, which the first of them decides."""

    __slots__ = ("_answer_count", "_policy", "_required_count")

    def __init__(self, policy: FirstTry) -> None:
        self._policy = policy
        self._answer_count = self._required_count = 0

    def observe(self, event: Event) -> Command | None:
        if (
            isinstance(event, Checkpoint)
            and event.kind == "sentence"
            and _states_answer(event.text)
        ):
            if not self._answer_count:
                is_easy = event.position <= self._policy.easy_tokens
                self._required_count = self._policy.easy if is_easy else self._policy.hard
            self._answer_count += 1
            if self._answer_count >= self._required_count:
                return Stop("answered", event.position)
        return None


def _states_answer(sentence: str) -> bool:
    """Whether ``sentence`` states an answer."""
    return _ANSWER_STATEMENT.search(sentence) is not None and _DOUBT.search(sentence) is None
