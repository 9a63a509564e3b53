"""Read the chunks of an engine's stream from its events."""

from __future__ import annotations

import msgspec

from adjourn.server.api.endpoint import Endpoint
from adjourn.server.relay.fail_open import FailOpen
from adjourn.server.relay.progress import Progress
from adjourn.server.stream.chunk import Chunk
from adjourn.server.stream.sse import event_data

__all__ = ["DONE", "EventReader"]

DONE = b"[DONE]"


class EventReader:
    """Decodes one event after the other. Sets ``Progress.saw_done``."""

    __slots__ = ("_endpoint", "_fail_open", "_progress")

    def __init__(self, endpoint: Endpoint, progress: Progress, fail_open: FailOpen) -> None:
        self._endpoint = endpoint
        self._progress = progress
        self._fail_open = fail_open

    def parse(self, event: bytes) -> Chunk | None:
        """The event's chunk. None if it has none (a comment, ``[DONE]``), or an unreadable one."""
        if event.startswith(b"data: {"):
            # The common case: one line of JSON, perhaps with white space after it.
            try:
                return self._endpoint.decode(event[6:])
            except msgspec.MsgspecError:
                pass  # read it as the standard says
        data = event_data(event)
        if data is None:
            return None
        if data == DONE:
            self._progress.saw_done = True
            return None
        return self.decode(data)

    def decode(self, data: bytes) -> Chunk | None:
        """The chunk in an event's data. None, counted as fail-open, if it cannot be read."""
        try:
            return self._endpoint.decode(data)
        except msgspec.MsgspecError:
            self._fail_open("unreadable-chunk")
            return None
