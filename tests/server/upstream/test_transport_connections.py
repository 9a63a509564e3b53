"""``Transport``: which connections are opened, kept and used again."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.server.upstream.loopback import (
    OK,
    ScriptedServer,
    encode_response,
    fetch,
    make_request,
    open_transport,
    serve,
)


def test_a_connection_serves_many_requests() -> None:
    async def run() -> int:
        server = ScriptedServer(OK, encode_response([b"a", b"b"], "chunked"), OK)
        async with serve(server) as url, open_transport() as transport:
            for expected in (b"ok", b"ab", b"ok"):
                assert await fetch(transport, make_request(url)) == (200, expected)
        return server.connections

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmore",
        OK + b"what is this",
    ],
)
def test_a_connection_is_not_reused_if_the_server_closes_it_or_sends_more_than_a_response(
    response: bytes,
) -> None:
    async def run() -> int:
        server = ScriptedServer(response, OK)
        async with serve(server) as url, open_transport() as transport:
            assert await fetch(transport, make_request(url)) == (200, b"ok")
            assert await fetch(transport, make_request(url)) == (200, b"ok")
        return server.connections

    assert asyncio.run(run()) == 2


def test_an_idle_connection_expires() -> None:
    async def run() -> int:
        server = ScriptedServer(OK, OK)
        async with serve(server) as url, open_transport(keepalive_expiry=0.05) as transport:
            await fetch(transport, make_request(url))
            await asyncio.sleep(0.1)
            await fetch(transport, make_request(url))
        return server.connections

    assert asyncio.run(run()) == 2


def test_a_request_on_a_reused_connection_that_is_lost_is_sent_again() -> None:
    """The server reads the second request and closes the connection without a response."""

    async def run() -> tuple[int, int]:
        server = ScriptedServer(OK, b"", OK)
        async with serve(server) as url, open_transport() as transport:
            await fetch(transport, make_request(url))
            status, _ = await fetch(transport, make_request(url))
        return status, server.connections

    assert asyncio.run(run()) == (200, 2)


def test_a_refused_connection_is_a_connect_error() -> None:
    async def run() -> None:
        async with serve(ScriptedServer()) as url:
            pass
        async with open_transport() as transport:
            await transport.handle_async_request(make_request(url))

    with pytest.raises(httpx.ConnectError):
        asyncio.run(run())


def test_concurrent_requests_get_their_own_responses() -> None:
    async def run() -> list[bytes]:
        async def echo_path(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError:
                    return
                path = head.split()[1]
                await asyncio.sleep(0.001 * (len(path) % 3))
                writer.write(encode_response([path[:2], path[2:]], "chunked"))

        async with serve(echo_path) as url, open_transport() as transport:

            async def fetch_path(number: int) -> bytes:
                _, body = await fetch(transport, make_request(f"{url}/{number}"))
                return body

            first = await asyncio.gather(*(fetch_path(n) for n in range(40)))
            return [*first, *await asyncio.gather(*(fetch_path(n) for n in range(40, 80)))]

    assert asyncio.run(run()) == [b"/%d" % n for n in range(80)]


def test_a_tls_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-signed certificate is refused, unless ``SSL_CERT_FILE`` names it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=a"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", *make.split(), *more], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def run() -> tuple[int, bytes]:
        server = ScriptedServer(OK)
        async with serve(server, ssl=context) as url, open_transport() as transport:
            return await fetch(transport, make_request(url.replace("http", "https")))

    with pytest.raises(httpx.ConnectError):
        asyncio.run(run())
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asyncio.run(run()) == (200, b"ok")
