"""HTTP on asyncio protocols: connections, delayed replies, and streams paced by shared timers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import cast

from benchmarks.standin import wire_format as wire
from benchmarks.standin.counts import RequestCounts
from benchmarks.standin.scenario import Scenario
from benchmarks.standin.stream import Fault, Step

__all__ = ["Connection", "DelayedReply", "RequestHandler", "StreamedReply", "Ticker"]

BURST_CHUNKS = 16  # chunks that an unpaced stream writes before it lets other streams write

RequestHandler = Callable[["Connection", str, str, bytes], None]
"""Takes a connection and its request's method, target and body; starts or writes the reply."""


class Connection(asyncio.Protocol):
    """One client's connection. It handles one request at a time.

    State: `headers` of the current request; `current_reply`, set by a reply that takes time and
    cleared when it ends; `write_paused`, set by asyncio's flow control.
    """

    def __init__(self, counts: RequestCounts, handle_request: RequestHandler) -> None:
        self.counts = counts
        self.headers: dict[str, str] = {}
        self.current_reply: StreamedReply | DelayedReply | None = None
        self.write_paused = False  # the client reads more slowly than we write
        self._handle_request = handle_request
        self._buffer = bytearray()
        self._should_close = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.current_reply is not None:
            self.current_reply.abort()
            self.current_reply = None

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if isinstance(self.current_reply, StreamedReply):
            self.current_reply.resume()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._process_buffer()

    def _process_buffer(self) -> None:
        while self.current_reply is None and not self.transport.is_closing():
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            start, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = {}
            for line in lines:
                key, _, value = line.partition(":")
                headers[key.strip().lower()] = value.strip()
            length = int(headers.get("content-length") or 0)
            if len(self._buffer) < end + 4 + length:
                if headers.get("expect", "").lower() == "100-continue":
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    self._buffer[:end] = self._buffer[:end].replace(b"100-continue", b"")
                return
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            method, target, *_ = start.split(" ")
            self.headers = headers
            self._should_close = headers.get("connection", "").lower() == "close"
            self._handle_request(self, method, target, body)

    def reply(self, data: bytes) -> None:
        """Write a whole response and go on with the next request."""
        self.transport.write(data)
        self.finish_reply()

    def drop(self) -> None:
        """Close the connection in the middle of a response."""
        self.current_reply = None
        self.transport.close()

    def finish_reply(self) -> None:
        """Go on with the next request after a complete response."""
        self.current_reply = None
        if self._should_close:
            self.transport.close()
        elif self._buffer:
            asyncio.get_running_loop().call_soon(self._process_buffer)


class DelayedReply:
    """A whole response after `delay` seconds; none if the delay is infinite."""

    def __init__(self, connection: Connection, delay: float, data: bytes, phase: str) -> None:
        self._connection = connection
        self._delay = delay
        self._data = data
        self._phase = phase
        self._timer: asyncio.TimerHandle | None = None

    def start(self, *, should_drop: bool = False) -> None:
        """Start the delay. With `should_drop`, close the connection then in place of a response."""
        self._connection.current_reply = self
        action = self._drop if should_drop else self._send
        if self._delay <= 0:
            action()
        elif self._delay != float("inf"):
            self._timer = asyncio.get_running_loop().call_later(self._delay, action)

    def _send(self) -> None:
        self._connection.counts.record_finish()
        self._connection.reply(self._data)

    def _drop(self) -> None:
        self._connection.counts.record_break()
        self._connection.drop()

    def abort(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._connection.counts.record_abort(self._phase, 0)


class StreamedReply:
    """A streamed response. A ticker calls `step` for each chunk; without one it is unpaced.

    State: the remaining steps, the parts of a split chunk not written yet, and whether it ended.
    """

    def __init__(
        self,
        connection: Connection,
        steps: Iterator[Step],
        scenario: Scenario,
        ticker: Ticker | None,
    ) -> None:
        self._connection = connection
        self._steps = steps
        self._delay = scenario.delay_first
        self._ticker = ticker
        self._splits_writes = scenario.tiny_writes or scenario.split_utf8
        self._pending_writes: deque[bytes] = deque()
        self._handle: asyncio.Handle | None = None
        self._chunk_count = 0
        self._ended = False
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        self._connection.current_reply = self
        self._connection.transport.write(wire.stream_head())
        if self._delay > 0:
            self._handle = self._loop.call_later(self._delay, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        self.step()
        if self._ended:
            return
        if self._ticker is not None:
            self._ticker.add(self)
        elif not self._splits_writes:
            self._handle = self._loop.call_soon(self._write_burst)

    def step(self) -> None:
        """Write one chunk, unless the client reads too slowly or parts are still pending."""
        if self._pending_writes or self._connection.write_paused:
            return
        step = next(self._steps)
        self._chunk_count += 1
        if isinstance(step, bytes):
            self._write(step)
        elif isinstance(step, list):
            self._pending_writes.extend(step)
            self._write_pending()
        else:
            self._end(step)

    def _write_burst(self) -> None:
        """Unpaced: write up to BURST_CHUNKS in one call, then let other streams write."""
        if self._connection.write_paused or self._ended:
            return
        chunks: list[bytes] = []
        for step in islice(self._steps, BURST_CHUNKS):
            if not isinstance(step, bytes):
                self._write(b"".join(chunks))
                self._end(step)
                return
            chunks.append(step)
            self._chunk_count += 1
        self._handle = self._loop.call_soon(self._write_burst)
        self._write(b"".join(chunks))

    def _write_pending(self) -> None:
        """Write one part in each iteration of the event loop, so that each is a separate write."""
        if self._pending_writes:
            self._handle = self._loop.call_soon(self._write_pending)
            self._write(self._pending_writes.popleft())
        elif self._ticker is None:
            self.step()

    def _write(self, data: bytes) -> None:
        self._connection.transport.write(data)
        if data.endswith(wire.LAST_HTTP_CHUNK):
            self._end(None)

    def resume(self) -> None:
        if self._ticker is None and not self._pending_writes:
            self._handle = self._loop.call_soon(
                self.step if self._splits_writes else self._write_burst
            )

    def _end(self, fault: Fault | list[bytes] | None) -> None:
        self._detach()
        connection = self._connection
        if fault is Fault.STALL:
            return  # keep the connection open until the client closes it
        if fault is Fault.DROP:
            connection.counts.record_break()
            connection.drop()
        else:
            connection.counts.record_finish()
            connection.finish_reply()

    def _detach(self) -> None:
        self._ended = True
        if self._ticker is not None:
            self._ticker.remove(self)
        if self._handle is not None:
            self._handle.cancel()

    def abort(self) -> None:
        self._detach()
        phase = "streaming" if self._chunk_count > 1 else "before the first token"
        self._connection.counts.record_abort(phase, self._chunk_count)


class Ticker:
    """Steps all streams of one rate at the same moments, as an engine steps its batch."""

    def __init__(self, interval: float) -> None:
        self._streams: dict[StreamedReply, None] = {}
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def add(self, stream: StreamedReply) -> None:
        self._streams[stream] = None
        if self._timer is None:
            self._due = self._loop.time() + self._interval
            self._timer = self._loop.call_at(self._due, self._tick)

    def remove(self, stream: StreamedReply) -> None:
        self._streams.pop(stream, None)

    def _tick(self) -> None:
        for stream in list(self._streams):
            stream.step()
        if not self._streams:
            self._timer = None
            return
        # A late tick is not followed by a burst: an engine under load slows down evenly.
        self._due = max(self._due + self._interval, self._loop.time())
        self._timer = self._loop.call_at(self._due, self._tick)
