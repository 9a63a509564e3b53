"""When a response came to what."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Times"]


@dataclass(slots=True)
class Times:
    """Seconds on the monotonic clock; 0.0 until it happened."""

    arrived: float
    request_sent: float = 0.0
    first_read: float = 0.0
    first_write: float = 0.0
    triggered: float = 0.0
    resumed: float = 0.0
