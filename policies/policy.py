"""What a stopping policy is.

A *policy* is a frozen dataclass of options, shared by all requests; its fields are what a user
may set. ``start()`` makes a *stopper*, the small state machine of one trace. A stopper gets
events and answers each with a command or with None; it is never asked again after a stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from policies.events import Command, Event

__all__ = ["Needs", "Policy", "Stopper"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy must be given. The server asks the engine for exactly this and refuses at
    start-up, with a clear message, what the engine can't give.

    ``cues``: a checkpoint at every cue. ``interval``: one every so many tokens (0: none).
    ``thoughts``: every decoded piece. ``probes``: side requests with log-probabilities.
    """

    cues: bool = False
    interval: int = 0
    thoughts: bool = False
    probes: bool = False

    def __or__(self, other: Needs) -> Needs:
        intervals = [n for n in (self.interval, other.interval) if n]
        return Needs(
            cues=self.cues or other.cues,
            interval=min(intervals, default=0),
            thoughts=self.thoughts or other.thoughts,
            probes=self.probes or other.probes,
        )


class Stopper(Protocol):
    """The state of one trace under a policy."""

    def observe(self, event: Event) -> Command | None: ...


class Policy(Protocol):
    """Options of one stopping rule. ``name`` is what users write and metrics carry."""

    name: ClassVar[str]

    @property
    def needs(self) -> Needs: ...

    def start(self) -> Stopper: ...
