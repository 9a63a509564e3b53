"""The decision to stop a trace, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adjourn.policies.events import Stop

__all__ = ["Action", "DryRunAction", "Trigger"]

Action = Literal["carried-out", "held-out", "observed", "refused", "abandoned"]
DryRunAction = Literal["held-out", "observed"]
"""The actions of a stop that is only recorded."""


@dataclass(slots=True)
class Trigger:
    """A stop at ``position`` tokens of the trace. At most one per request.

    ``action`` is ``abandoned`` until the stop is carried out or refused: it stays so if the client
    disconnects first. ``tokens_after``: reasoning tokens generated after ``position``, known only
    if the trace continued to its natural end.
    """

    stop: Stop
    position: int
    action: Action
    tokens_after: int | None = None
