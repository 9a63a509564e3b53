"""``cusum``: stop once the model has gone from unsure to sure.

Rule: with H the entropy of each token of the trace (over the 20 most probable), the statistic is
S = max(0, S + ``reference`` - H): it stays near 0 while tokens are unsure and grows while they are
sure. Once S > ``threshold``, after ``min_tokens``, stop at the next end of a sentence.
Units: nats; ``reference`` lies between the two regimes' mean entropies, ``threshold`` says how much
evidence is wanted.
Source: Unveiling the Entropy Dynamics of Chain-of-Thought Reasoning, arXiv 2606.02020.
Cost: no probe, but log-probabilities with every token of the main stream, which slow an engine
that serves many. It needs no answer format, so it serves prose, code, JSON and tool calls as well.
Both numbers belong to a model and have to be tuned on its traces; the defaults were, on the pocket
model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, ReasoningChunk, Stop
from adjourn.policies.evidence.uncertainty import ENTROPY_TOP_LOGPROBS, token_entropy
from adjourn.policies.policy import Needs

__all__ = ["Cusum"]


@dataclass(frozen=True, slots=True)
class Cusum:
    """Options of ``cusum``: ``reference`` and ``threshold`` in nats, ``min_tokens`` of the trace
    before which it never stops."""

    name: ClassVar[str] = "cusum"
    reference: float = 0.1
    threshold: float = 24.0
    min_tokens: int = 64

    def __post_init__(self) -> None:
        if not self.reference > 0 or not self.threshold > 0:
            raise ValueError("reference and threshold must be greater than 0")
        if self.min_tokens < 0:
            raise ValueError("min_tokens must be at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(reasoning_chunks=True, sentences=True, logprobs=ENTROPY_TOP_LOGPROBS)

    def start(self) -> CusumStopper:
        return CusumStopper(self)


class CusumStopper:
    __slots__ = ("_is_sure", "_policy", "_statistic")

    def __init__(self, policy: Cusum) -> None:
        self._policy = policy
        self._statistic = 0.0
        self._is_sure = False

    def observe(self, event: Event) -> Command | None:
        match event:
            case ReasoningChunk():
                for logprobs in filter(None, event.logprobs):
                    self._update(token_entropy(logprobs))
            case Checkpoint(kind="sentence") if self._is_sure:
                if event.position >= self._policy.min_tokens:
                    return Stop("sure", event.position)
        return None

    def _update(self, value: float) -> None:
        self._statistic = max(0.0, self._statistic + self._policy.reference - value)
        self._is_sure = self._is_sure or self._statistic > self._policy.threshold
