"""``no-thinking``: close the trace before it begins.

Rule: insert "Okay, I think I have finished thinking." (the dialect's text ``finished``) in place of
the first token of the trace, and close it.
Source: NoThinking, arXiv 2504.09858.
Deviations: the paper prefills the closing sequence; here it follows the engine's first tokens,
which show that the trace is open. A template with a switch (``enable_thinking``) does the same more
cheaply.
Cost: these first tokens, and everything that thinking is good for.
Patience: none to scale. It has no option and does not wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Checkpoint, Command, Event, Stop
from adjourn.policies.policy import Needs

__all__ = ["NoThinking"]


@dataclass(frozen=True, slots=True)
class NoThinking:
    """The policy without options. It is its own stopper."""

    name: ClassVar[str] = "no-thinking"

    @property
    def needs(self) -> Needs:
        return Needs(start=True, inducers=frozenset({"finished"}))

    def start(self) -> NoThinking:
        return self  # it has no state, so all traces share it

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, Checkpoint) and event.kind == "start":
            return Stop("no-thinking", event.position, text_name="finished")
        return None
