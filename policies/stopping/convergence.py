"""``convergence``: stop when the trial answer has stopped changing.

Rule: a trial answer every ``every`` tokens; stop when the last ``window`` of them are the same by
meaning, none is empty or hesitant, at least ``min_tokens`` were thought, and the last one's
confidence is at least ``floor``. The last two conditions are ours: consistency alone, looked at
often, collapses on hard tasks.
Sources: Dynasor-CoT / Certaindex, arXiv 2412.20993; patience as in PABEE (BERT Loses Patience).
Cost: one trial answer of at most ``max_tokens`` every ``every`` tokens.
It needs an answer that can be drawn: a box, a choice, a short text or code (``task``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar, Literal

from adjourn.policies.events import (
    Checkpoint,
    Command,
    Event,
    Probe,
    ProbeFailed,
    ProbeResult,
    Stop,
)
from adjourn.policies.evidence.answers import (
    INDUCERS_BY_KIND,
    AnswerKind,
    answer_confidence,
    canonically_equal,
    extract_trial_answer,
    is_hesitant,
)
from adjourn.policies.policy import Needs

__all__ = ["Convergence"]

Effort = Literal["mild", "low", "mid", "high", "max"]
# (window, every): the more effort goes into stopping, the sooner it stops.
_EFFORT_PRESETS: dict[Effort, tuple[int, int]] = {
    "mild": (8, 64),
    "low": (5, 64),
    "mid": (3, 64),
    "high": (2, 64),
    "max": (2, 32),
}


@dataclass(frozen=True, slots=True)
class Convergence:
    """Options of ``convergence``.

    ``effort`` sets ``window`` (trial answers that must agree) and ``every`` (tokens between them)
    where these are None. ``floor``: least confidence, in [0, 1]. ``min_tokens``: tokens of the
    trace before which it never stops. ``task``: what kind of answer is drawn.
    """

    name: ClassVar[str] = "convergence"
    effort: Effort = "mid"
    window: int | None = None
    every: int | None = None
    min_tokens: int = 128
    floor: float = 0.8
    max_tokens: int = 20
    task: AnswerKind = "boxed"

    def __post_init__(self) -> None:
        if self.effort not in _EFFORT_PRESETS:
            raise ValueError(f"effort must be one of {', '.join(_EFFORT_PRESETS)}")
        window, every = self.window_and_interval
        if window < 2 or every < 1 or self.max_tokens < 1 or self.min_tokens < 0:
            raise ValueError("window must be at least 2, every and max_tokens 1, min_tokens 0")
        if not 0 <= self.floor < 1:
            raise ValueError("floor must lie in [0, 1)")

    @property
    def window_and_interval(self) -> tuple[int, int]:
        """(window, every), explicit settings before the effort's."""
        window, every = _EFFORT_PRESETS[self.effort]
        return (
            window if self.window is None else self.window,
            every if self.every is None else self.every,
        )

    @property
    def needs(self) -> Needs:
        return Needs(
            interval=self.window_and_interval[1],
            probes=True,
            inducers=frozenset({INDUCERS_BY_KIND[self.task]}),
        )

    def start(self) -> ConvergenceStopper:
        return ConvergenceStopper(self)


class ConvergenceStopper:
    __slots__ = ("_every", "_next_probe_at", "_policy", "_recent_answers")

    def __init__(self, policy: Convergence) -> None:
        window, self._every = policy.window_and_interval
        self._policy = policy
        self._next_probe_at = self._every
        self._recent_answers: deque[str | None] = deque(maxlen=window)

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint() if event.position >= self._next_probe_at:
                self._next_probe_at = event.position + self._every
                return Probe(
                    INDUCERS_BY_KIND[self._policy.task], max_tokens=self._policy.max_tokens
                )
            case ProbeResult():
                return self._evaluate(event)
            case ProbeFailed() if event.reason != "price":  # then nothing was asked
                self._recent_answers.append(None)
        return None

    def _evaluate(self, result: ProbeResult) -> Command | None:
        answer = extract_trial_answer(result.text, self._policy.task)
        self._recent_answers.append(None if not answer or is_hesitant(result.text) else answer)
        if len(self._recent_answers) < (self._recent_answers.maxlen or 0):
            return None
        if any(a is None or not canonically_equal(a, answer) for a in self._recent_answers):
            return None
        certainty = answer_confidence(result.tokens, result.logprobs, self._policy.task)
        if result.position < self._policy.min_tokens or certainty < self._policy.floor:
            return None
        return Stop("converged", result.position, certainty)
