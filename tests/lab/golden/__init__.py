"""Requests that a gateway served before a real vLLM: what its sessions were told, and decided.

``python -m tests.lab.golden URL [NAME …]`` takes them anew from an engine that serves the pocket
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
