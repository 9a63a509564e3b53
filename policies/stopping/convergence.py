"""``convergence``: stop when the trial answer has stopped changing.

Rule: request a trial answer every ``every`` tokens. Stop if the last ``window`` answers are equal
in meaning, none of them is empty or hesitant, the trace has at least ``min_tokens`` tokens, and the
confidence of the last answer is at least ``floor``.
Units: tokens of the trace; ``floor`` is a probability.
Sources: Dynasor-CoT / Certaindex, arXiv 2412.20993; patience as in PABEE (BERT Loses Patience).
Deviations: ``min_tokens`` and ``floor`` are ours. Agreement alone, checked often, collapses on hard
tasks: 73.3 to 13.3 points on AIME24.
Cost: one trial answer of at most ``max_tokens`` tokens every ``every`` tokens.
Needs an answer that can be requested: a box, a choice, a short text or code (``task``).
Patience: ``window`` is multiplied, within 2 to 16 (or to ``window`` itself, if that is larger).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
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
from adjourn.policies.patience import scale_count
from adjourn.policies.policy import Needs

__all__ = ["Convergence"]

Effort = Literal["mild", "low", "mid", "high", "max"]
# (window, every). This effort is the policy's own: more effort to stop means an earlier stop.
_EFFORT_PRESETS: dict[Effort, tuple[int, int]] = {
    "mild": (8, 64),
    "low": (5, 64),
    "mid": (3, 64),
    "high": (2, 64),
    "max": (2, 32),
}

_MIN_WINDOW = 2
_MAX_SCALED_WINDOW = 16


@dataclass(frozen=True, slots=True)
class Convergence:
    """Options of ``convergence``.

    ``effort`` sets ``window`` (trial answers that must agree) and ``every`` (tokens between them)
    where these are None. ``floor``: lowest confidence of the last answer, in [0, 1).
    ``min_tokens``: tokens of the trace before which it never stops. ``max_tokens``: longest trial
    answer, in tokens. ``task``: the kind of trial answer.
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
        if window < _MIN_WINDOW or every < 1 or self.max_tokens < 1 or self.min_tokens < 0:
            raise ValueError("window must be at least 2, every and max_tokens 1, min_tokens 0")
        if not 0 <= self.floor < 1:
            raise ValueError("floor must lie in [0, 1)")

    @property
    def window_and_interval(self) -> tuple[int, int]:
        """(window, every): the explicit options, else those of the effort."""
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

    def with_patience(self, factor: float) -> Convergence:
        window, every = self.window_and_interval
        scaled = min(scale_count(window, factor, _MIN_WINDOW), max(window, _MAX_SCALED_WINDOW))
        return replace(self, window=scaled, every=every)

    def start(self) -> ConvergenceStopper:
        return ConvergenceStopper(self)


class ConvergenceStopper:
    """One trace. State, changed by ``observe`` only: the position of the next probe and the last
    ``window`` answers, None for one that is empty, hesitant or missing."""

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
            case ProbeFailed() if event.reason != "price":  # "price": not sent
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
