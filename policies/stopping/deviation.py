"""``deviation``: stop when a trace begins to turn about more often than it did.

Rule: a transition is a cue whose first token was unsure, its entropy at least ``entropy``. With n
of them in a trace of t tokens, r among the last ``window`` tokens, the index is
(r / ``window``) / (n / t); at a transition, ``min_tokens`` and a window at the earliest, stop when
the index > ``threshold``, before that cue. That r is at least 2 is ours: the first turn after a
long quiet derivation would pass by itself. The index is at most t / ``window``, so no trace stops
before ``threshold`` windows.
Units: tokens; nats for ``entropy``; the index has none.
Source: Reasoning Path Deviation Index (RPDI-EE), arXiv 2603.14251.
Cost: no probe, but log-probabilities with every token of the main stream, which slow an engine
that serves many. It needs no answer format, so it serves prose, code, JSON and tool calls as well.
``window`` and ``threshold`` belong to a model and have to be tuned on its traces; the defaults
were, on the pocket model's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, ReasoningChunk, Stop
from adjourn.policies.evidence.uncertainty import ENTROPY_TOP_LOGPROBS, token_entropy
from adjourn.policies.policy import Needs

__all__ = ["Deviation"]

_MAX_UNSURE_POSITIONS = 64
"""Unsure pieces that may follow a cue before it becomes certain."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """Options of ``deviation``: ``window`` and ``min_tokens`` in tokens of the trace, ``threshold``
    λ of the index, ``entropy`` in nats."""

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

    def start(self) -> DeviationStopper:
        return DeviationStopper(self)


class DeviationStopper:
    __slots__ = ("_policy", "_recent_transitions", "_transition_count", "_unsure_positions")

    def __init__(self, policy: Deviation) -> None:
        self._policy = policy
        self._transition_count = 0
        self._recent_transitions: deque[int] = deque()  # positions of the transitions in the window
        self._unsure_positions: deque[int] = deque(
            maxlen=_MAX_UNSURE_POSITIONS
        )  # where pieces with unsure tokens begin

    def observe(self, event: Event) -> Command | None:
        match event:
            case ReasoningChunk():
                # A cue's place is where the piece begins that it begins in, be it of one token.
                if any(token_entropy(told) >= self._policy.entropy for told in event.logprobs):
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
