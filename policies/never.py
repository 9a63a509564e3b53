"""``never``: the baseline. It never stops anything and costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Command, Event
from adjourn.policies.policy import Needs

__all__ = ["Never"]


@dataclass(frozen=True, slots=True)
class Never:
    name: ClassVar[str] = "never"

    @property
    def needs(self) -> Needs:
        return Needs()

    def start(self) -> Never:
        return self  # without state, so one serves every trace

    def observe(self, event: Event) -> Command | None:
        return None
