"""``Transport``: the bytes of requests and responses, against servers on the loopback interface."""

from __future__ import annotations

import asyncio
import itertools

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.upstream.loopback import (
    OK,
    ScriptedServer,
    encode_response,
    fetch,
    make_request,
    open_transport,
    read_into,
    serve,
)


def split_at(data: bytes, positions: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(position % (len(data) + 1) for position in positions)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.binary(max_size=40), max_size=6),
    st.sampled_from(["length", "chunked", "close"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_the_body_is_complete_however_it_is_framed_and_split(
    parts: list[bytes], framing: str, positions: list[int]
) -> None:
    async def run() -> tuple[int, bytes]:
        response = split_at(encode_response(parts, framing), positions)
        server = ScriptedServer(response, close=framing == "close")
        async with serve(server) as url, open_transport() as transport:
            return await fetch(transport, make_request(url, content=b"x"))

    assert asyncio.run(run()) == (200, b"".join(parts))


def test_the_request_is_sent_unchanged() -> None:
    """Target, headers and body as given, with one ``Host`` header."""

    async def run() -> bytes:
        server = ScriptedServer(OK)
        async with serve(server) as url, open_transport() as transport:
            request = make_request(url + "/a?b=%20c", content=b"{}", headers={"x-y": "z"})
            await fetch(transport, request)
        return server.requests[0]

    head, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    first, *lines = head.lower().split(b"\r\n")
    assert first == b"post /a?b=%20c http/1.1"
    assert body == b"{}"
    assert {b"x-y: z", b"content-length: 2"} <= set(lines)
    assert sum(line.startswith(b"host: 127.0.0.1:") for line in lines) == 1


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_response_without_a_body_ends_after_its_head(method: str) -> None:
    """The response to a HEAD request and a 204, whatever their headers announce."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n"
    no_content = b"HTTP/1.1 204 No Content\r\n\r\n"
    response = head + b"none of this" if method == "HEAD" else no_content

    async def run() -> tuple[int, bytes]:
        async with serve(ScriptedServer(response)) as url, open_transport() as transport:
            return await fetch(transport, make_request(url, method))

    assert asyncio.run(run()) == (200 if method == "HEAD" else 204, b"")


def test_an_interim_response_is_skipped() -> None:
    """A status below 200 precedes the final response."""

    async def run() -> tuple[int, bytes]:
        server = ScriptedServer([b"HTTP/1.1 100 Continue\r\n\r\n", OK])
        async with serve(server) as url, open_transport() as transport:
            return await fetch(transport, make_request(url))

    assert asyncio.run(run()) == (200, b"ok")


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\nContent-", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", httpx.ReadError),
        (encode_response([b"a", b"b"], "chunked")[:-3], httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz", httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 101 X\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n", httpx.TransportError),
    ],
)
def test_an_incomplete_or_invalid_response_is_an_error(
    response: bytes, error: type[httpx.TransportError]
) -> None:
    async def run() -> None:
        server = ScriptedServer(response, close=True)
        async with serve(server) as url, open_transport() as transport:
            await fetch(transport, make_request(url))

    with pytest.raises(error):
        asyncio.run(run())


def test_data_received_before_an_error_is_delivered() -> None:
    async def run() -> list[bytes]:
        server = ScriptedServer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", close=True)
        received: list[bytes] = []
        async with serve(server) as url, open_transport() as transport:
            response = await transport.handle_async_request(make_request(url))
            with pytest.raises(httpx.ReadError):
                await read_into(received, response)
        return received

    assert asyncio.run(run()) == [b"ok"]
