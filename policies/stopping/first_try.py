"""``first-try``: stop at the first few answers that the trace itself comes to.

Rule: count the sentences that state an answer (``\\boxed{…}``, "the answer is …", "the result is
…"); stop at the end of the k-th. An easy question needs ``easy`` of them, a hard one ``hard``; it
is hard where the first took more than ``easy_tokens`` tokens of thought.
Source: First Try Matters, arXiv 2510.08308. There a trained model finds the answers and another
tells the question's class from its text; here both are read off the trace.
Cost: none. It finds only answers that are said in these words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, Stop
from adjourn.policies.policy import Needs

__all__ = ["FirstTry"]

# A question, a condition or a doubt states nothing.
_ANSWER_STATEMENT = re.compile(
    r"\\boxed\s*\{\s*[^}\s]"
    r"|\b(?:answer|result|solution)(?:\s+(?:should|must|would))?\s+(?:is|be|equals|=)\b\s*:?\s*"
    r"(?!(?:not|wrong|unclear|in|the same)\b)[^\s?.]",
    re.IGNORECASE,
)
_DOUBT = re.compile(r"\?\s*$|\b(?:if|whether|unless)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FirstTry:
    """Options of ``first-try``: ``easy`` and ``hard`` in stated answers, 1 to 3 in the paper;
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

    def start(self) -> FirstTryStopper:
        return FirstTryStopper(self)


class FirstTryStopper:
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
                easy = event.position <= self._policy.easy_tokens
                self._required_count = self._policy.easy if easy else self._policy.hard
            self._answer_count += 1
            if self._answer_count >= self._required_count:
                return Stop("answered", event.position)
        return None


def _states_answer(sentence: str) -> bool:
    """Whether ``sentence`` states an answer."""
    return _ANSWER_STATEMENT.search(sentence) is not None and _DOUBT.search(sentence) is None
