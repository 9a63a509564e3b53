"""Servers on the loopback interface that send given bytes, and requests through ``Transport``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from adjourn.server.upstream.transport import Transport

HIGH_WATER = 2**16
"""Bytes of a response that the transport buffers before it stops reading."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ScriptedServer:
    """Sends the next of ``responses`` for each request, part by part if it is a list, and closes
    the connection at an empty one.

    ``close``: close the connection after each response. State: ``connections`` counts the accepted
    connections, ``requests`` holds the bytes of each request.
    """

    def __init__(self, *responses: bytes | list[bytes], close: bool = False) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._responses = list(responses)
        self._close = close

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                if not self._responses:
                    break
                response = self._responses.pop(0)
                if not response:
                    break
                for part in [response] if isinstance(response, bytes) else response:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self._close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serve(handler: Handler, **options: Any) -> AsyncIterator[str]:
    """The URL of a server that runs ``handler`` for each connection. ``options`` are those of
    ``asyncio.start_server``."""
    tasks: set[asyncio.Task[Any]] = set()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0, **options)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


@asynccontextmanager
async def open_transport(keepalive_expiry: float = 3.0) -> AsyncIterator[Transport]:
    transport = Transport(keepalive_expiry, HIGH_WATER)
    yield transport
    await transport.aclose()


def make_request(
    url: str, method: str = "POST", *, read_timeout: float = 5.0, **options: Any
) -> httpx.Request:
    timeout = {"connect": 5.0, "read": read_timeout}
    return httpx.Request(method, url, extensions={"timeout": timeout}, **options)


async def fetch(transport: Transport, request: httpx.Request) -> tuple[int, bytes]:
    """Status and whole body of the response."""
    response = await transport.handle_async_request(request)
    try:
        return response.status_code, await response.aread()
    finally:
        await response.aclose()


async def read_into(received: list[bytes], response: httpx.Response) -> None:
    """Read the body. Whatever arrives before an error is in ``received``."""
    async for data in response.stream:  # type: ignore[union-attr]
        received.append(data)  # noqa: PERF401 (the data before an error must be kept)


def encode_response(parts: list[bytes], framing: str) -> bytes:
    """A response with the body ``parts``, whose end is marked by its ``length``, by an empty chunk
    (``chunked``) or by the ``close`` of the connection."""
    body = b"".join(parts)
    if framing == "length":
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    if framing == "close":
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
