"""The events of one choice that wait for their release to the client, in order."""

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
    """``put`` takes events in order; ``flush`` sends those that the session has released.

    state                 content                                            changed by
    --------------------  -------------------------------------------------  --------------------
    should_rewrite_usage  the stream is one of several of this response: its  Relay, AnswerStream
                          usage must be replaced by the response's
    _pending              (chunk number, event, chunk) not released yet      put, withdraw,
                                                                             queue_released
    _outgoing             events as the client gets them, not written yet    put, queue_released,
                                                                             flush
    _sending              a write is under way                               flush
    _write_done           for tasks that wait for that write                 flush

    Invariants: an event is rendered for the client exactly once, when it is released. A write that
    is cancelled has written nothing, and its events stay in ``_outgoing``.
    ``always_summarize``: add the summary even if the policy did nothing.
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
        self._write_done: asyncio.Future[None] | None = None

    def put(self, chunk_number: int, event: bytes, chunk: Chunk | None) -> None:
        """Add an event, which the session's chunk ``chunk_number`` releases (0: no chunk).

        ``chunk``: the decoded event; None to pass it on unchanged.
        """
        if self._pending or chunk_number > self._session.released_chunks:
            self._pending.append((chunk_number, event, chunk))
        else:  # the common case
            self._queue_outgoing(event, chunk)

    def withdraw(self, keep_chunks: int) -> list[tuple[bytes, Chunk | None]]:
        """Remove and return the pending events after the first ``keep_chunks`` chunks."""
        pending, taken = self._pending, []
        while pending and pending[-1][0] > keep_chunks:
            _, event, chunk = pending.pop()
            taken.append((event, chunk))
        return taken[::-1]

    async def flush(self) -> None:
        """Write the released events, in order. While another task writes, wait for it first."""
        if self._pending:
            self.queue_released()
        outgoing = self._outgoing
        if not outgoing:
            return
        while self._sending:
            self._write_done = self._write_done or asyncio.get_running_loop().create_future()
            await asyncio.wait((self._write_done,))
        self._sending = True  # an asyncio.Lock would cost more than everything else here
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
        """Render the events that the session has released meanwhile."""
        released, pending = self._session.released_chunks, self._pending
        while pending and pending[0][0] <= released:
            _, event, chunk = pending.popleft()
            self._queue_outgoing(event, chunk)

    def _queue_outgoing(self, event: bytes, chunk: Chunk | None) -> None:
        """Render an event for the client, if the client gets it."""
        if chunk is None:
            self._outgoing.append(event)
            return
        if self.should_rewrite_usage and chunk.usage is not None:
            event = encode_event(with_total_usage(event_data(event) or b"{}", self._session.ledger))
        rendered = self._endpoint.render_event(event, chunk)
        if rendered is None:
            return
        choice = chunk.choices[0] if chunk.choices else None
        is_last = choice is None or choice.finish_reason is not None
        if is_last and self.has_summary and self._endpoint.carries_summary(chunk, choice):
            summary = summarize_session(self._session)
            rendered = encode_event(with_key(event_data(rendered) or b"{}", "adjourn", summary))
        self._outgoing.append(rendered)

    @property
    def is_empty(self) -> bool:
        """Whether everything was written."""
        return not self._pending and not self._outgoing

    @property
    def has_summary(self) -> bool:
        """Whether the response carries a summary."""
        session = self._session
        return (
            self._always_summarize
            or session.trigger is not None
            or session.rescued_finish_reason is not None
            or session.extensions > 0
        )
