"""``deviation``: stop when the model changes its direction more often than before.

Rule: a transition is a cue whose first token was uncertain (entropy at least ``entropy``). With n
transitions in a trace of t tokens, r of them in the last ``window`` tokens, the index is
(r / ``window``) / (n / t). At a transition, after ``min_tokens`` and one window, stop before that
cue if the index > ``threshold``.
Units: tokens of the trace; nats for ``entropy``; the index is a ratio. It is at most
t / ``window``, so no trace stops before ``threshold`` windows.
Source: Reasoning Path Deviation Index (RPDI-EE), arXiv 2603.14251.
Deviations: r must be at least 2, or the first transition after a long quiet derivation would stop
the trace. ``window`` and ``threshold`` depend on the model: tune them on its traces. The defaults
were tuned by replay on the pocket model's.
Cost: no probe, but log-probabilities with every token of the main stream, which slow a busy engine.
Needs no answer format: fits prose, code, JSON and tool calls too.
Patience: ``threshold`` - 1, the tolerated excess over the trace's own rate, is multiplied. A
``threshold`` of at most 1 is left as it is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, ReasoningChunk, Stop
from adjourn.policies.evidence.uncertainty import ENTROPY_TOP_LOGPROBS, token_entropy
from adjourn.policies.policy import Needs

__all__ = ["Deviation"]

_MAX_UNSURE_POSITIONS = 64
"""Chunks with an uncertain token that may come between a cue and its checkpoint."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """Options of ``deviation``: ``window`` and ``min_tokens`` in tokens of the trace; ``entropy``
    in nats; ``threshold``: the paper's λ, for the index."""

    name: ClassVar[str] = "deviation"
    window: int = 128
    threshold: float = 1.2
    entropy: float = 0.3
    min_tokens: int = 128

    def __post_init__(self) -> None:
        if self.window < 1 or self.min_tokens < 0:
            raise ValueError("window must be at least 1, min_tokens 0")
        if not self.threshold > 0 or not self.entropy >= 0:
            raise ValueError("threshold must be greater than 0, entropy at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(cues=True, reasoning_chunks=True, logprobs=ENTROPY_TOP_LOGPROBS)

    def with_patience(self, factor: float) -> Deviation:
        if self.threshold <= 1:
            return self
        return replace(self, threshold=1 + (self.threshold - 1) * factor)

    def start(self) -> DeviationStopper:
        return DeviationStopper(self)


class DeviationStopper:
    """One trace. State, changed by ``observe`` only:

    _transition_count    transitions of the whole trace
    _recent_transitions  positions of the transitions in the window
    _unsure_positions    where the latest chunks with an uncertain token begin
    """

    __slots__ = ("_policy", "_recent_transitions", "_transition_count", "_unsure_positions")

    def __init__(self, policy: Deviation) -> None:
        self._policy = policy
        self._transition_count = 0
        self._recent_transitions: deque[int] = deque()
        self._unsure_positions: deque[int] = deque(maxlen=_MAX_UNSURE_POSITIONS)

    def observe(self, event: Event) -> Command | None:
        match event:
            case ReasoningChunk():
                # The position of a cue is the beginning of the chunk in which it begins.
                if any(token_entropy(top) >= self._policy.entropy for top in event.logprobs):
                    self._unsure_positions.append(event.position - len(event.token_ids))
            case Checkpoint(kind="cue") if event.position in self._unsure_positions:
                return self._on_transition(event.position)
        return None

    def _on_transition(self, position: int) -> Stop | None:
        policy, recent = self._policy, self._recent_transitions
        self._transition_count += 1
        recent.append(position)
        while recent[0] <= position - policy.window:
            recent.popleft()
        length = position + 1
        if len(recent) < 2 or length < max(policy.min_tokens, policy.window):
            return None
        index = len(recent) * length / (policy.window * self._transition_count)
        return Stop("deviating", position) if index > policy.threshold else None
