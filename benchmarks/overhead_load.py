"""The load generator of `benchmarks.overhead`, a separate process so that its CPU is not counted.

    python -m benchmarks.overhead_load '{"port": 8200, "streams": 32, …}'

An asyncio protocol counts `data: {` and records when the first byte of the body arrived. At each
snapshot it reads the CPU time of the given processes; at the end it prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

__all__ = ["Load", "LoadResult", "Snapshot", "cpu_seconds"]

EVENT_PREFIX = b"data: {"
BODY_END = b"0\r\n\r\n"
POLL_SECONDS = 0.01


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of all threads of these processes, to the nanosecond (/proc counts 10 ms)."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            # Linux: the clock id of another process's CPU time, as from clock_getcpuclockid.
            total += time.clock_gettime((~pid << 3) | 2)
    return total


@dataclass(frozen=True, slots=True)
class Load:
    """Concurrent streams, each restarted when it ends, until the last snapshot.

    ``snapshots_at``: seconds since the start or, if ``snapshots_by_tokens``, tokens per stream.
    ``standin``: the scenario; a pair of ``tokens`` is a range for a random number.
    """

    port: int
    streams: int
    snapshots_at: Sequence[float]
    standin: dict[str, Any]
    pids: list[int] = field(default_factory=list)
    snapshots_by_tokens: bool = False
    start_spread: float = 0.5  # seconds over which the streams start
    prompt_words: int = 300
    model: str = "standin"
    timeout: float = 120.0  # seconds


@dataclass(slots=True)
class Snapshot:
    """Seconds since the start, tokens received, CPU seconds of the processes under test."""

    seconds: float
    tokens: int
    cpu_seconds: float


@dataclass(slots=True)
class LoadResult:
    """The results; ``first_byte_seconds`` has only responses after the first snapshot."""

    snapshots: list[Snapshot] = field(default_factory=list)
    first_byte_seconds: list[float] = field(default_factory=list)
    requests: int = 0
    errors: int = 0
    error: str | None = None


class LoadGenerator:
    """Runs one load.

    State, which StreamConnection updates too: the result, the tokens received so far, and whether
    the load is finished, after which lost connections are no errors.
    """

    def __init__(self, load: Load) -> None:
        self.load = load
        self.result = LoadResult()
        self.tokens = 0
        self.is_finished = False
        self._rng = random.Random(0)
        self._prompt = " ".join(f"word{i % 50}" for i in range(load.prompt_words))

    def build_request(self) -> bytes:
        """The bytes of a request with a random number of tokens."""
        standin = dict(self.load.standin)
        if isinstance(standin["tokens"], list):
            low, high = standin["tokens"]
            # The first streams may be shorter, so that they do not all end at once.
            first = self.result.requests <= self.load.streams
            standin["tokens"] = self._rng.randint(1 if first else low, high)
        body = json.dumps(
            {
                "model": self.load.model,
                "messages": [{"role": "user", "content": self._prompt}],
                "stream": True,
                "temperature": 0.6,
                "standin": standin,
            }
        ).encode()
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/json\r\nAuthorization: Bearer none\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        ) + body

    async def run(self) -> LoadResult:
        """Open the streams, take all snapshots, and close the connections."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        streams: list[StreamConnection] = []
        opening = asyncio.ensure_future(self._open_streams(streams))
        for snapshot_at in self.load.snapshots_at:
            while not self._has_reached(snapshot_at, loop.time() - start):
                if loop.time() - start > self.load.timeout:
                    self.record_failure(
                        f"snapshot {snapshot_at:g} not reached in {self.load.timeout:g} s"
                    )
                    break
                await asyncio.sleep(POLL_SECONDS)
            self._take_snapshot(loop.time() - start)
        self.is_finished = True
        opening.cancel()
        for stream in streams:
            stream.transport.abort()
        return self.result

    async def _open_streams(self, streams: list[StreamConnection]) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self.load.streams):
            _, stream = await loop.create_connection(
                lambda: StreamConnection(self), "127.0.0.1", self.load.port
            )
            streams.append(stream)
            await asyncio.sleep(self.load.start_spread / self.load.streams)

    def _has_reached(self, snapshot_at: float, seconds: float) -> bool:
        if self.load.snapshots_by_tokens:
            return self.tokens >= snapshot_at * self.load.streams
        return seconds >= snapshot_at

    def _take_snapshot(self, seconds: float) -> None:
        if not self.result.snapshots:
            self.result.first_byte_seconds.clear()
        self.result.snapshots.append(Snapshot(seconds, self.tokens, cpu_seconds(self.load.pids)))

    def record_failure(self, message: str) -> None:
        """Count an error; the first message is kept."""
        if not self.is_finished:
            self.result.errors += 1
            self.result.error = self.result.error or message


class StreamConnection(asyncio.Protocol):
    """Sends a request, reads the response to its end, and repeats."""

    def __init__(self, generator: LoadGenerator) -> None:
        self._generator = generator
        self._head = b""
        self._in_body = False
        self._awaits_first_byte = True
        self._tail = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._send_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._generator.record_failure(f"connection lost: {exc}")

    def _send_request(self) -> None:
        self._head, self._tail = b"", b""
        self._in_body, self._awaits_first_byte = False, True
        self._generator.result.requests += 1
        request = self._generator.build_request()
        self._sent_at = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._in_body = True
            if not head.startswith(b"HTTP/1.1 200"):
                self._generator.record_failure(
                    (head[:40] + b" " + data[:300]).decode("utf-8", "replace")
                )
                self.transport.abort()
                return
        if not data:
            return
        if self._awaits_first_byte:
            self._awaits_first_byte = False
            self._generator.result.first_byte_seconds.append(time.perf_counter() - self._sent_at)
        overlap = len(EVENT_PREFIX) - 1
        edge = self._tail + data[:overlap]
        self._generator.tokens += data.count(EVENT_PREFIX) + edge.count(EVENT_PREFIX)
        self._tail = (self._tail + data[-overlap:])[-overlap:]
        if self._tail.endswith(BODY_END) and not self._generator.is_finished:
            self._send_request()


def main() -> None:
    run = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    gc.disable()
    load = Load(**json.loads(sys.argv[1]))

    async def start() -> LoadResult:
        return await LoadGenerator(load).run()

    print(json.dumps(asdict(run(start()))))


if __name__ == "__main__":
    main()
