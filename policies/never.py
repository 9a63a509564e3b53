"""``never``: never stop. The baseline, at no cost; also what ``mode: observe`` carries out.

Patience: none to scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Command, Event
from adjourn.policies.policy import Needs

__all__ = ["Never"]


@dataclass(frozen=True, slots=True)
class Never:
    """The policy without options. It is its own stopper."""

    name: ClassVar[str] = "never"

    @property
    def needs(self) -> Needs:
        return Needs()

    def start(self) -> Never:
        return self  # it has no state, so all traces share it

    def observe(self, event: Event) -> Command | None:
        return None
