"""What a client is to get of one choice, in order, as far as its session has released it."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from adjourn.policies.session.session import Session
from adjourn.server.api.endpoint import Endpoint
from adjourn.server.relay.times import Times
from adjourn.server.stream.chunk import Chunk, encode_event, with_key
from adjourn.server.stream.sinks import Sink
from adjourn.server.stream.sse import event_data
from adjourn.server.stream.usage import summarize_session, with_total_usage

__all__ = ["Outbox"]


class Outbox:
    """``put`` takes events in order, each with the number of the piece that must be released first
    (0: none); ``flush`` sends. An event is made what the client sees when it is released, once.

    ``explicit``: the client is told what was done even where nothing was. ``merged``: the stream
    is one of several, so that its usage is not the response's.
    """

    def __init__(
        self, session: Session, endpoint: Endpoint, sink: Sink, times: Times, always_summarize: bool
    ) -> None:
        self.should_rewrite_usage = False
        self._session = session
        self._endpoint = endpoint
        self._sink = sink
        self._times = times
        self._always_summarize = always_summarize
        self._pending: deque[tuple[int, bytes, Chunk | None]] = deque()
        self._outgoing: list[bytes] = []
        self._sending = False
        self._write_done: asyncio.Future[None] | None = None  # for who waits until it is

    def put(self, chunk_number: int, event: bytes, chunk: Chunk | None) -> None:
        """``chunk``: what the event says; None where it is passed on as it is."""
        if self._pending or chunk_number > self._session.released_chunks:
            self._pending.append((chunk_number, event, chunk))
        else:  # nearly always
            self._queue_outgoing(event, chunk)

    def withdraw(self, keep_chunks: int) -> list[tuple[bytes, Chunk | None]]:
        """Take back what stands behind these pieces."""
        pending, taken = self._pending, []
        while pending and pending[-1][0] > keep_chunks:
            _, event, chunk = pending.pop()
            taken.append((event, chunk))
        return taken[::-1]

    async def flush(self) -> None:
        """Send what is released, in order; who comes while another sends waits for the rest."""
        if self._pending:
            self.queue_released()
        outgoing = self._outgoing
        if not outgoing:
            return
        while self._sending:
            self._write_done = self._write_done or asyncio.get_running_loop().create_future()
            await asyncio.wait((self._write_done,))
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
            if self._write_done is not None:
                self._write_done.set_result(None)
                self._write_done = None

    def queue_released(self) -> None:
        released, pending = self._session.released_chunks, self._pending
        while pending and pending[0][0] <= released:
            _, event, chunk = pending.popleft()
            self._queue_outgoing(event, chunk)

    def _queue_outgoing(self, event: bytes, chunk: Chunk | None) -> None:
        """Make it what the client is to get, if anything."""
        if chunk is None:
            self._outgoing.append(event)
            return
        if self.should_rewrite_usage and chunk.usage is not None:
            event = encode_event(with_total_usage(event_data(event) or b"{}", self._session.ledger))
        shown = self._endpoint.render_event(event, chunk)
        if shown is None:
            return
        choice = chunk.choices[0] if chunk.choices else None
        ends = choice is None or choice.finish_reason is not None
        if ends and self.has_summary and self._endpoint.carries_summary(chunk, choice):
            note = summarize_session(self._session)
            shown = encode_event(with_key(event_data(shown) or b"{}", "adjourn", note))
        self._outgoing.append(shown)

    @property
    def is_empty(self) -> bool:
        return not self._pending and not self._outgoing

    @property
    def has_summary(self) -> bool:
        """Whether the client is told what was done."""
        session = self._session
        return (
            self._always_summarize
            or session.trigger is not None
            or session.rescued_finish_reason is not None
            or session.extensions > 0
        )
