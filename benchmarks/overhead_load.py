"""The load of `benchmarks.overhead`, in a process of its own so that its cost is not counted.

    python -m benchmarks.overhead_load '{"port": 8200, "streams": 32, …}'

A raw protocol that counts `data: {` and notes when the first byte behind the headers came. At each
mark it reads the CPU time of the processes it was told of, and at the end it prints one JSON line.
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

__all__ = ["Load", "Mark", "Result", "cpu_seconds"]

TOKEN = b"data: {"
END = b"0\r\n\r\n"
POLL = 0.01


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of all threads of these processes, to the nanosecond (/proc counts in 10 ms)."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            # Linux: the clock id of another process's CPU time, as clock_getcpuclockid makes it.
            total += time.clock_gettime((~pid << 3) | 2)
    return total


@dataclass(frozen=True, slots=True)
class Load:
    """Streams that begin again when they end, until the last mark.

    ``marks``: seconds from the first request or, where ``by_tokens``, tokens per stream.
    ``standin``: what the stand-in is to do; a pair as ``tokens`` is drawn from at random.
    """

    port: int
    streams: int
    marks: Sequence[float]
    standin: dict[str, Any]
    pids: list[int] = field(default_factory=list)
    by_tokens: bool = False
    spread: float = 0.5  # seconds over which the streams begin
    words: int = 300  # in the prompt
    model: str = "standin"
    give_up: float = 120.0  # seconds


@dataclass(slots=True)
class Mark:
    seconds: float
    tokens: int
    cpu: float


@dataclass(slots=True)
class Result:
    marks: list[Mark] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)  # seconds; those behind the first mark
    requests: int = 0
    errors: int = 0
    error: str | None = None


class Run:
    """One load on its way."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.result = Result()
        self.tokens = 0
        self.over = False
        self._rng = random.Random(0)
        self._prompt = " ".join(f"word{i % 50}" for i in range(load.words))

    def request(self) -> bytes:
        standin = dict(self.load.standin)
        if isinstance(standin["tokens"], list):
            low, high = standin["tokens"]
            # The first streams are as if met on their way, so that they do not all end at once.
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

    async def run(self) -> Result:
        loop = asyncio.get_running_loop()
        start = loop.time()
        streams: list[Stream] = []
        opening = asyncio.ensure_future(self._open(streams))
        for mark in self.load.marks:
            while not self._reached(mark, loop.time() - start):
                if loop.time() - start > self.load.give_up:
                    self.failed(f"mark {mark:g} not reached in {self.load.give_up:g} s")
                    break
                await asyncio.sleep(POLL)
            self._note(loop.time() - start)
        self.over = True
        opening.cancel()
        for stream in streams:
            stream.transport.abort()
        return self.result

    async def _open(self, streams: list[Stream]) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self.load.streams):
            _, stream = await loop.create_connection(
                lambda: Stream(self), "127.0.0.1", self.load.port
            )
            streams.append(stream)
            await asyncio.sleep(self.load.spread / self.load.streams)

    def _reached(self, mark: float, seconds: float) -> bool:
        if self.load.by_tokens:
            return self.tokens >= mark * self.load.streams
        return seconds >= mark

    def _note(self, seconds: float) -> None:
        if not self.result.marks:
            self.result.first_bytes.clear()
        self.result.marks.append(Mark(seconds, self.tokens, cpu_seconds(self.load.pids)))

    def failed(self, what: str) -> None:
        if not self.over:
            self.result.errors += 1
            self.result.error = self.result.error or what


class Stream(asyncio.Protocol):
    """A connection that asks, reads to the end, and asks again."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._head = b""
        self._in_body = False
        self._waiting = True
        self._tail = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.failed(f"connection lost: {exc}")

    def _ask(self) -> None:
        self._head, self._tail = b"", b""
        self._in_body, self._waiting = False, True
        self._run.result.requests += 1
        request = self._run.request()
        self._sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._in_body = True
            if not head.startswith(b"HTTP/1.1 200"):
                self._run.failed((head[:40] + b" " + data[:300]).decode("utf-8", "replace"))
                self.transport.abort()
                return
        if not data:
            return
        if self._waiting:
            self._waiting = False
            self._run.result.first_bytes.append(time.perf_counter() - self._sent)
        overlap = len(TOKEN) - 1
        edge = self._tail + data[:overlap]
        self._run.tokens += data.count(TOKEN) + edge.count(TOKEN)
        self._tail = (self._tail + data[-overlap:])[-overlap:]
        if self._tail.endswith(END) and not self._run.over:
            self._ask()


def main() -> None:
    run = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    gc.disable()
    load = Load(**json.loads(sys.argv[1]))

    async def start() -> Result:
        return await Run(load).run()

    print(json.dumps(asdict(run(start()))))


if __name__ == "__main__":
    main()
