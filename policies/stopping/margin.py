"""``margin``: stop when closing the trace is about as likely as going on.

Rule: at the end of a sentence, ask the running trace for its next token; stop when
log p(most probable token) - log p(end of the trace) <= ``threshold``. The end is the closing
sequence up to its marker: where the model writes a newline first, that newline alone tells nothing.
Units: nats; 0 or less means that the model itself would close now.
Source: ThinkBrake, arXiv 2510.00546, where the marker is all that closes.
Cost: as many requests of one token a sentence as the end has tokens (one or two). It needs no
answer format, so it serves prose, code, JSON and tool calls as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, Probe, ProbeResult, Stop
from adjourn.policies.policy import Needs

__all__ = ["Margin"]

_PROBE = Probe(inducer="", max_tokens=1, close_trace=False, score_end=True)


@dataclass(frozen=True, slots=True)
class Margin:
    """Options of ``margin``: ``threshold`` τ in nats, at least 0."""

    name: ClassVar[str] = "margin"
    threshold: float = 0.25

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError("threshold must be at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(sentences=True, probes=True, end_logprob=True)

    def start(self) -> MarginStopper:
        return MarginStopper(self.threshold)


class MarginStopper:
    __slots__ = ("_threshold",)

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="sentence"):
                return _PROBE
            case ProbeResult(logprobs=(top, *_), end_logprob=float(ending)):
                if top - ending <= self._threshold:
                    return Stop("narrow", event.position)
        return None
