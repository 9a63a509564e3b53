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
        self._sending = False
        self._sent: asyncio.Future[None] | None = None  # for who waits until it is

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
        if self._pending:
            self.release()
        outgoing = self._outgoing
        if not outgoing:
            return
        while self._sending:
            self._sent = self._sent or asyncio.get_running_loop().create_future()
            await asyncio.wait((self._sent,))
        self._sending = True  # a lock would cost more than all else here
        try:
            while count := len(outgoing):
                if not self._times.first_write:
                    self._times.first_write = time.perf_counter()
                await self._sink.write(outgoing[:count])
                # Only now: a write that was cancelled while it waited has written nothing.
                del outgoing[:count]
        finally:
            self._sending = False
            if self._sent is not None:
                self._sent.set_result(None)
                self._sent = None

    def release(self) -> None:
        released, pending = self._session.released, self._pending
        while pending and pending[0][0] <= released:
            _, event, chunk = pending.popleft()
            self._send(event, chunk)

    def _send(self, event: bytes, chunk: Chunk | None) -> None:
        """Make it what the client is to get, if anything."""
        if chunk is None:
            self._outgoing.append(event)
            return
        if self.merged and chunk.usage is not None:
            event = event_of(with_usage(data_of(event) or b"{}", self._session.ledger))
        shown = self._surface.shown(event, chunk)
        if shown is None:
            return
        choice = chunk.choices[0] if chunk.choices else None
        ends = choice is None or choice.finish_reason is not None
        if ends and self.telling and self._surface.is_last(chunk, choice):
            note = note_of(self._session)
            shown = event_of(with_key(data_of(shown) or b"{}", "adjourn", note))
        self._outgoing.append(shown)

    @property
    def empty(self) -> bool:
        return not self._pending and not self._outgoing

    @property
    def telling(self) -> bool:
        """Whether the client is told what was done."""
        session = self._session
        return (
            self._explicit
            or session.trigger is not None
            or session.rescued is not None
            or session.extended > 0
        )
