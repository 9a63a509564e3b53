"""``no-thinking``: end the trace before it begins.

Rule: in place of the first token "Okay, I think I have finished thinking." is put, and the trace is
closed. Templates with a switch for it (``enable_thinking``) do the same more cheaply.
Source: NoThinking, arXiv 2504.09858.
Cost: the first tokens, by which the trace is known to be open; and all that thinking is good for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, Stop
from adjourn.policies.policy import Needs

__all__ = ["NoThinking"]


@dataclass(frozen=True, slots=True)
class NoThinking:
    name: ClassVar[str] = "no-thinking"

    @property
    def needs(self) -> Needs:
        return Needs(start=True, inducers=frozenset({"finished"}))

    def start(self) -> NoThinking:
        return self  # without state, so one serves every trace

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, Checkpoint) and event.kind == "start":
            return Stop("no-thinking", event.position, text_name="finished")
        return None
