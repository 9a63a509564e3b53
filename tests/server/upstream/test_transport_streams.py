"""``Transport``: read timeouts, cancellation and backpressure of streamed responses."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import httpx
import pytest

from tests.server.upstream.loopback import (
    OK,
    ScriptedServer,
    encode_response,
    make_request,
    open_transport,
    read_into,
    serve,
)

CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_the_read_timeout_limits_silence_and_not_the_whole_response() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED_HEAD)
        for _ in range(8):  # together longer than the timeout
            await asyncio.sleep(0.05)
            writer.write(b"1\r\na\r\n")
        await asyncio.sleep(5)

    async def run() -> list[bytes]:
        received: list[bytes] = []
        async with serve(handle) as url, open_transport() as transport:
            response = await transport.handle_async_request(make_request(url, read_timeout=0.2))
            with pytest.raises(httpx.ReadTimeout):
                await read_into(received, response)
        return received

    assert b"".join(asyncio.run(run())) == b"a" * 8


def test_the_read_timeout_limits_the_wait_for_the_head() -> None:
    async def run() -> None:
        server = ScriptedServer([b"HTTP/1.1 1"], OK)
        async with serve(server) as url, open_transport() as transport:
            await transport.handle_async_request(make_request(url, read_timeout=0.05))

    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(run())


@pytest.mark.parametrize("when", ["before the head", "before the body", "within the body"])
def test_cancelling_or_closing_closes_the_connection_at_once(when: str) -> None:
    """So that the engine stops generating for a client that has left."""

    async def run() -> None:
        closed = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if when != "before the head":
                writer.write(CHUNKED_HEAD + b"1\r\na\r\n")
            with suppress(ConnectionError):
                await reader.read()
            closed.set()
            writer.close()

        async with serve(handle) as url, open_transport() as transport:
            request = asyncio.ensure_future(transport.handle_async_request(make_request(url)))
            if when == "before the head":
                await asyncio.sleep(0.05)
                request.cancel()
            else:
                response = await request
                if when == "within the body":
                    assert await anext(response.stream.__aiter__()) == b"a"  # type: ignore[union-attr]
                await response.aclose()
            await asyncio.wait_for(closed.wait(), 2)

    asyncio.run(run())


def test_closing_a_response_ends_a_pending_read() -> None:
    async def run() -> list[bytes]:
        received: list[bytes] = []
        server = ScriptedServer([encode_response([b"a"], "chunked")[:-5]], OK)
        async with serve(server) as url, open_transport() as transport:
            response = await transport.handle_async_request(make_request(url))
            reading = asyncio.ensure_future(read_into(received, response))
            await asyncio.sleep(0.05)
            await response.aclose()
            await asyncio.wait_for(reading, 2)
        return received

    assert asyncio.run(run()) == [b"a"]


def test_a_slow_reader_pauses_the_engine() -> None:
    """The transport buffers a bounded number of bytes. After the pause the rest arrives, none of
    it lost, and the pause is no read timeout."""

    async def run() -> tuple[int, int]:
        chunk = b"%x\r\n%b\r\n" % (4096, b"x" * 4096)
        sent = 0

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(CHUNKED_HEAD)
            for _ in range(8_000):
                writer.write(chunk)
                await writer.drain()
                sent += 1
            writer.write(b"0\r\n\r\n")
            writer.close()

        async with serve(handle) as url, open_transport() as transport:
            response = await transport.handle_async_request(make_request(url, read_timeout=0.3))
            await asyncio.sleep(1.0)
            sent_while_paused = sent
            body = await response.aread()
        return sent_while_paused, len(body)

    sent_while_paused, size = asyncio.run(run())
    assert sent_while_paused < 6_000  # the sockets' buffers in the kernel hold these
    assert size == 8_000 * 4096
