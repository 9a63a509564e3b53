"""Split a byte stream into server-sent events, without touching a byte of them."""

from __future__ import annotations

import re

__all__ = ["EventSplitter", "event_data"]

_END = re.compile(rb"\n\n|\r\n\r\n|\r\r|\n\r\n|\r\n\n")


class EventSplitter:
    """Feed it what was read; it gives the events that are whole, terminators included.

    The events it gave and ``rest`` are, put together, exactly what was fed.
    """

    __slots__ = ("_remainder",)

    def __init__(self) -> None:
        self._remainder = b""

    def feed(self, data: bytes) -> list[bytes]:
        whole = data.endswith(b"\n\n") and not self._remainder
        if whole and data.count(b"\n") == 2 and b"\r" not in data:
            return [data]  # one event a read: nearly always
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
        """What is left behind the last whole event."""
        return self._remainder


def event_data(event: bytes) -> bytes | None:
    """The event's data, or None where it has none (a keep-alive comment)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]  # a line of data and an empty one: nearly always
    lines = [
        line[5:].removeprefix(b" ")
        for line in re.split(rb"\r\n|\n|\r", event)
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None
