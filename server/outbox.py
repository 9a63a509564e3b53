"""What a client is to get of one choice, in order, as far as its session has released it."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from policies.session import Session
from server.account import note_of, with_usage
from server.sinks import Sink
from server.sse import data_of
from server.surface import Surface
from server.times import Times
from server.wire import Chunk, event_of, with_key

__all__ = ["Outbox"]


class Outbox:
    """``put`` takes events in order, each with the number of the piece that must be released first
    (0: none); ``flush`` sends. An event is made what the client sees when it is released, once.

    ``explicit``: the client is told what was done even where nothing was. ``merged``: the stream
    is one of several, so that its usage is not the response's.
    """

    def __init__(
        self, session: Session, surface: Surface, sink: Sink, times: Times, explicit: bool
    ) -> None:
        self.merged = False
        self._session = session
        self._surface = surface
        self._sink = sink
        self._times = times
        self._explicit = explicit
        self._pending: deque[tuple[int, bytes, Chunk | None]] = deque()
        self._outgoing: list[bytes] = []
        self._sending = asyncio.Lock()

    def put(self, number: int, event: bytes, chunk: Chunk | None) -> None:
        """``chunk``: what the event says; None where it is passed on as it is."""
        if self._pending or number > self._session.released:
            self._pending.append((number, event, chunk))
        else:  # nearly always
            self._send(event, chunk)

    def withdraw(self, pieces: int) -> list[tuple[bytes, Chunk | None]]:
        """Take back what stands behind these pieces."""
        pending, taken = self._pending, []
        while pending and pending[-1][0] > pieces:
            _, event, chunk = pending.pop()
            taken.append((event, chunk))
        return taken[::-1]

    async def flush(self) -> None:
        """Send what is released, in order; who comes while another sends waits for the rest."""
        self.release()
        if not self._outgoing:
            return
        async with self._sending:
            while count := len(self._outgoing):
                if not self._times.first_write:
                    self._times.first_write = time.perf_counter()
                await self._sink.write(self._outgoing[:count])
                # Only now: a write that was cancelled while it waited has written nothing.
                del self._outgoing[:count]

    def release(self) -> None:
        released, pending = self._session.released, self._pending
        while pending and pending[0][0] <= released:
            _, event, chunk = pending.popleft()
            self._send(event, chunk)

    def _send(self, event: bytes, chunk: Chunk | None) -> None:
        shown = event if chunk is None else self._shown(event, chunk)
        if shown is not None:
            self._outgoing.append(shown)

    def _shown(self, event: bytes, chunk: Chunk) -> bytes | None:
        """The event as the client is to get it; None where it gets none."""
        if self.merged and chunk.usage is not None:
            event = event_of(with_usage(data_of(event) or b"{}", self._session.ledger))
        shown = self._surface.shown(event, chunk)
        if shown is None or not self.telling:
            return shown
        choice = chunk.choices[0] if chunk.choices else None
        if self._surface.is_last(chunk, choice):
            return event_of(with_key(data_of(shown) or b"{}", "adjourn", note_of(self._session)))
        return shown

    @property
    def telling(self) -> bool:
        """Whether the client is told what was done."""
        session = self._session
        acted = session.trigger is not None or session.rescued is not None or session.extended > 0
        return self._explicit or acted
