"""``margin``: stop at a sentence end if closing the trace is about as likely as continuing it.

Rule: at the end of a sentence, ask the open trace for its next token; stop if
log p(most probable token) - log p(end of the trace) <= ``threshold``. The end is the closing
sequence up to and including its end marker.
Units: nats; at 0 or less the model itself would close now.
Source: ThinkBrake, arXiv 2510.00546.
Deviations: in the paper the end marker alone closes the trace; here a newline before it belongs to
the end, if the dialect has one, since the probability of that newline alone says nothing.
Cost: one request of one token for each token of the end (one or two) a sentence. Needs no answer
format: fits prose, code, JSON and tool calls too.
Patience: ``threshold`` is divided.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, Probe, ProbeResult, Stop
from adjourn.policies.policy import Needs

__all__ = ["Margin"]

_PROBE = Probe(inducer="", max_tokens=1, close_trace=False, score_end=True)


@dataclass(frozen=True, slots=True)
class Margin:
    """Options of ``margin``. ``threshold``: the paper's τ in nats, at least 0."""

    name: ClassVar[str] = "margin"
    threshold: float = 0.25

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError("threshold must be at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(sentences=True, probes=True, end_logprob=True)

    def with_patience(self, factor: float) -> Margin:
        return replace(self, threshold=self.threshold / factor)

    def start(self) -> MarginStopper:
        return MarginStopper(self.threshold)


class MarginStopper:
    """One trace. It has no state."""

    __slots__ = ("_threshold",)

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint(kind="sentence"):
                return _PROBE
            case ProbeResult(logprobs=(top, *_), end_logprob=float(end)):
                if top - end <= self._threshold:
                    return Stop("narrow", event.position)
        return None
