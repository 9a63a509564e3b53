"""Golden recordings: the inputs and decisions of a gateway's sessions in front of a real vLLM.

``python -m tests.lab.golden URL [NAME …]`` records them again, on an engine that serves the pocket
model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from adjourn.lab.trace_log import LogEvent

__all__ = ["FOLDER", "read"]

FOLDER = Path(__file__).parent


def read(events: list[Any]) -> list[LogEvent]:
    return msgspec.convert(events, list[LogEvent])
