"""The laboratory's HTTP client: what a call raises when the engine fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from adjourn.lab.http_client import EngineError, HttpClient

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"n":1}\r\n\r\n'
FIRST_EVENT = HEAD + b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
Call = Callable[[HttpClient], Coroutine[Any, Any, Any]]


async def read_stream(client: HttpClient) -> list[bytes]:
    return [data async for data in client.stream("/chat", b"{}")]


async def read_content(client: HttpClient) -> bytes:
    return await client.post("/completions", b"{}")


def call(function: Call, reply: bytes, *, close: bool) -> Any:
    """The result of ``function`` with an engine that sends ``reply`` and then closes the connection
    or falls silent."""

    async def run() -> Any:
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(reply)
                await writer.drain()
                while not close and await reader.read(1024):
                    pass  # until the client closes the connection
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            served.set()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = HttpClient(f"http://127.0.0.1:{port}/", "key", read_timeout=0.2)
            try:
                return await function(client)
            finally:
                await client.aclose()
                await served.wait()

    return asyncio.run(run())


def test_a_stream_gives_the_data_of_its_events() -> None:
    """With any line ends."""
    assert call(read_stream, FIRST_EVENT + b"0\r\n\r\n", close=True) == [b'{"n":1}']


@pytest.mark.parametrize("function", [read_stream, read_content])
def test_another_status_is_an_engine_error(function: Call) -> None:
    """The message has the path, the status and the beginning of the content."""
    reply = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 900\r\n\r\n" + b"x" * 900
    with pytest.raises(EngineError, match=r"^/\w+ answered 400: x{300}$"):
        call(function, reply, close=True)


@pytest.mark.parametrize("reply", [b"", FIRST_EVENT])
@pytest.mark.parametrize("function", [read_stream, read_content])
def test_a_silent_engine_is_a_timeout(function: Call, reply: bytes) -> None:
    """Before the reply and within it."""
    with pytest.raises(TimeoutError):
        call(function, reply, close=False)


@pytest.mark.parametrize("function", [read_stream, read_content])
def test_a_broken_connection_is_a_transport_error(function: Call) -> None:
    """A reply without its end is not a complete one."""
    with pytest.raises(httpx.TransportError):
        call(function, FIRST_EVENT, close=True)
