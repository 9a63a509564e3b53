"""Split a byte stream into server-sent events without changing a byte."""

from __future__ import annotations

import re

__all__ = ["EventSplitter", "event_data"]

_END = re.compile(rb"\n\n|\r\n\r\n|\r\r|\n\r\n|\r\n\n")


class EventSplitter:
    """Splits what is fed into complete events, with their terminators.

    Invariant: the events returned so far plus ``remainder`` are exactly the bytes fed.
    """

    __slots__ = ("_remainder",)

    def __init__(self) -> None:
        self._remainder = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completed."""
        whole = data.endswith(b"\n\n") and not self._remainder
        if whole and data.count(b"\n") == 2 and b"\r" not in data:
            return [data]  # the common case: one event per read
        text = self._remainder + data
        if b"\r" not in text:
            *parts, self._remainder = text.split(b"\n\n")
            return [part + b"\n\n" for part in parts]
        events, start = [], 0
        for match in _END.finditer(text):
            events.append(text[start : match.end()])
            start = match.end()
        self._remainder = text[start:]
        return events

    @property
    def remainder(self) -> bytes:
        """The bytes after the last complete event."""
        return self._remainder


def event_data(event: bytes) -> bytes | None:
    """The event's data; None if it has none (a keep-alive comment)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]  # the common case: one data line
    lines = [
        line[5:].removeprefix(b" ")
        for line in re.split(rb"\r\n|\n|\r", event)
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None
