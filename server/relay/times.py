"""Times of one response, for the metrics."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Times"]


@dataclass(slots=True)
class Times:
    """Seconds of the monotonic clock; 0.0 until the event.

    ``arrived``: the request. ``request_sent``: to the engine. ``first_read``, ``first_write``: of
    the stream. ``triggered``: the latest stop or extension. ``resumed``: the answer after it has
    begun.
    """

    arrived: float
    request_sent: float = 0.0
    first_read: float = 0.0
    first_write: float = 0.0
    triggered: float = 0.0
    resumed: float = 0.0
