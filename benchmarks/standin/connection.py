"""HTTP on raw protocols: connections, answers that take their time, and streams on one timer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from benchmarks.standin import wire_format as wire
from benchmarks.standin.scenario import Scenario
from benchmarks.standin.stream import Fault, Step

if TYPE_CHECKING:
    from benchmarks.standin.engine import StandinEngine

__all__ = ["Connection", "DelayedReply", "StreamedReply", "Ticker"]

BURST_CHUNKS = 16  # chunks that an unpaced stream writes before the others' turn


class Connection(asyncio.Protocol):
    """One client's connection: requests in turn, each answered at once or by a piece of work."""

    def __init__(self, engine: StandinEngine) -> None:
        self.engine = engine
        self.headers: dict[str, str] = {}
        self.current_reply: StreamedReply | DelayedReply | None = None
        self.write_paused = False  # the peer does not read as fast as is written
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
            path = urlsplit(target).path
            if not path.startswith("/standin/"):
                seen = {"method": method, "path": target, "headers": headers}
                self.engine.recent_requests.append(
                    {**seen, "body": body.decode("utf-8", "replace")}
                )
            self.engine.handle_request(self, method, path, body)

    def reply(self, data: bytes) -> None:
        self.transport.write(data)
        self.finish_reply()

    def drop(self) -> None:
        self.current_reply = None
        self.transport.close()

    def finish_reply(self) -> None:
        self.current_reply = None
        if self._should_close:
            self.transport.close()
        elif self._buffer:
            asyncio.get_running_loop().call_soon(self._process_buffer)


class DelayedReply:
    """One answer, whole, after a while; never, if the while is infinite."""

    def __init__(self, connection: Connection, delay: float, data: bytes, phase: str) -> None:
        self._connection = connection
        self._delay = delay
        self._data = data
        self._phase = phase
        self._timer: asyncio.TimerHandle | None = None

    def start(self, *, should_drop: bool = False) -> None:
        self._connection.current_reply = self
        act = self._drop if should_drop else self._send
        if self._delay <= 0:
            act()
        elif self._delay != float("inf"):
            self._timer = asyncio.get_running_loop().call_later(self._delay, act)

    def _send(self) -> None:
        self._connection.engine.record_finish()
        self._connection.reply(self._data)

    def _drop(self) -> None:
        self._connection.engine.record_break()
        self._connection.drop()

    def abort(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._connection.engine.record_abort(self._phase, 0)


class StreamedReply:
    """A stream that is under way: its steps are drawn by a ticker, or by itself if unpaced."""

    def __init__(self, connection: Connection, steps: Iterator[Step], scenario: Scenario) -> None:
        self._connection = connection
        self._steps = steps
        self._delay = scenario.delay_first
        self._ticker = connection.engine.ticker_for(scenario.rate) if scenario.rate > 0 else None
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
        """Write one chunk. A stream that is not read, or not yet written, misses its turn."""
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
        """Unpaced: some chunks in one write, then the other streams' turn."""
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
        """A piece in each turn of the loop, so that each is a write of its own."""
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
            return  # until the peer has had enough
        if fault is Fault.DROP:
            connection.engine.record_break()
            connection.drop()
        else:
            connection.engine.record_finish()
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
        self._connection.engine.record_abort(phase, self._chunk_count)


class Ticker:
    """All streams of one rate take their steps together, as in an engine's batch."""

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
        # A tick that comes late is not made up for: an engine under load is slow, not jerky.
        self._due = max(self._due + self._interval, self._loop.time())
        self._timer = self._loop.call_at(self._due, self._tick)
