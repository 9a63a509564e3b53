"""The engine's client, against servers that say what they say byte by byte."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn.server.upstream.transport import Transport

HIGH_WATER = 2**16
Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request with the next of ``answers``, given in pieces; hangs up at an empty one.
    ``connections`` counts how many it had, ``asked`` holds what it was sent."""

    def __init__(self, *answers: bytes | list[bytes], close: bool = False) -> None:
        self.asked: list[bytes] = []
        self.connections = 0
        self.gone = asyncio.Event()
        self._answers = list(answers)
        self._close = close

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0] or 0)
                self.asked.append(head + await reader.readexactly(length))
                if not self._answers:
                    break
                answer = self._answers.pop(0)
                if not answer:
                    break
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self._close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.gone.set()
            writer.close()


@asynccontextmanager
async def served(say: Say, **more: Any) -> AsyncIterator[str]:
    working: set[asyncio.Task[Any]] = set()

    async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        working.add(task)
        try:
            await say(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(noted, "127.0.0.1", 0, **more)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await asyncio.sleep(0)


@asynccontextmanager
async def transport(keep: float = 3.0) -> AsyncIterator[Transport]:
    made = Transport(keep, HIGH_WATER)
    yield made
    await made.aclose()


def request(url: str, method: str = "POST", **more: Any) -> httpx.Request:
    timeout = {"connect": 5.0, "read": more.pop("silence", 5.0)}
    return httpx.Request(method, url, extensions={"timeout": timeout}, **more)


async def whole(client: Transport, asked: httpx.Request) -> tuple[int, bytes]:
    response = await client.handle_async_request(asked)
    try:
        return response.status_code, await response.aread()
    finally:
        await response.aclose()


async def drain(response: httpx.Response, got: list[bytes]) -> None:
    async for data in response.stream:  # type: ignore[union-attr]
        got.append(data)  # noqa: PERF401 (what came before an error must stay)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def framed(parts: list[bytes], framing: str) -> bytes:
    body = b"".join(parts)
    if framing == "length":
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    if framing == "close":
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.binary(max_size=40), max_size=6),
    st.sampled_from(["length", "chunked", "close"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_the_body_is_whole_however_it_comes(
    parts: list[bytes], framing: str, places: list[int]
) -> None:
    async def run() -> tuple[int, bytes]:
        server = Server(cut(framed(parts, framing), places), close=framing == "close")
        async with served(server) as url, transport() as client:
            return await whole(client, request(url, content=b"x"))

    assert asyncio.run(run()) == (200, b"".join(parts))


def test_what_is_sent_is_the_request() -> None:
    async def run() -> bytes:
        server = Server(OK)
        async with served(server) as url, transport() as client:
            await whole(client, request(url + "/a?b=%20c", content=b"{}", headers={"x-y": "z"}))
        return server.asked[0]

    head, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    first, *lines = head.lower().split(b"\r\n")
    assert first == b"post /a?b=%20c http/1.1"
    assert body == b"{}"
    assert {b"x-y: z", b"content-length: 2"} <= set(lines)
    assert sum(line.startswith(b"host: 127.0.0.1:") for line in lines) == 1


def test_a_connection_serves_many_requests() -> None:
    async def run() -> int:
        server = Server(OK, framed([b"a", b"b"], "chunked"), OK)
        async with served(server) as url, transport() as client:
            for expected in (b"ok", b"ab", b"ok"):
                assert await whole(client, request(url)) == (200, expected)
        return server.connections

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmore",
        OK + b"what is this",
    ],
)
def test_a_connection_that_cannot_be_trusted_is_not_used_again(answer: bytes) -> None:
    async def run() -> int:
        server = Server(answer, OK)
        async with served(server) as url, transport() as client:
            status, body = await whole(client, request(url))
            assert (status, body) == (200, b"ok")
            assert await whole(client, request(url)) == (200, b"ok")
        return server.connections

    assert asyncio.run(run()) == 2


def test_a_kept_connection_grows_old() -> None:
    async def run() -> int:
        server = Server(OK, OK)
        async with served(server) as url, transport(keep=0.05) as client:
            await whole(client, request(url))
            await asyncio.sleep(0.1)
            await whole(client, request(url))
        return server.connections

    assert asyncio.run(run()) == 2


def test_one_that_was_closed_just_as_it_is_taken_is_replaced() -> None:
    """The server reads the second request and hangs up without a word."""

    async def run() -> tuple[int, int]:
        server = Server(OK, b"", OK)
        async with served(server) as url, transport() as client:
            await whole(client, request(url))
            status, _ = await whole(client, request(url))
        return status, server.connections

    assert asyncio.run(run()) == (200, 2)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_replies_without_a_body(method: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n"
    answers = [head + b"none of this"] if method == "HEAD" else [b"HTTP/1.1 204 No Content\r\n\r\n"]

    async def run() -> tuple[int, bytes]:
        async with served(Server(*answers)) as url, transport() as client:
            return await whole(client, request(url, method))

    assert asyncio.run(run()) == (200 if method == "HEAD" else 204, b"")


def test_an_interim_reply_is_not_the_reply() -> None:
    async def run() -> tuple[int, bytes]:
        server = Server([b"HTTP/1.1 100 Continue\r\n\r\n", OK])
        async with served(server) as url, transport() as client:
            return await whole(client, request(url))

    assert asyncio.run(run()) == (200, b"ok")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\nContent-", httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", httpx.ReadError),
        (framed([b"a", b"b"], "chunked")[:-3], httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz", httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 101 X\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n", httpx.TransportError),
    ],
)
def test_a_reply_that_is_not_whole_is_an_error(
    answer: bytes, error: type[httpx.TransportError]
) -> None:
    async def run() -> None:
        async with served(Server(answer, close=True)) as url, transport() as client:
            await whole(client, request(url))

    with pytest.raises(error):
        asyncio.run(run())


def test_what_came_before_an_error_is_not_lost() -> None:
    async def run() -> list[bytes]:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"
        got: list[bytes] = []
        async with served(Server(answer, close=True)) as url, transport() as client:
            response = await client.handle_async_request(request(url))
            with pytest.raises(httpx.ReadError):
                await drain(response, got)
        return got

    assert asyncio.run(run()) == [b"ok"]


def test_silence_times_out_and_talk_does_not() -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(8):  # longer than the time-out in all
            await asyncio.sleep(0.05)
            writer.write(b"1\r\na\r\n")
        await asyncio.sleep(5)

    async def run() -> list[bytes]:
        got: list[bytes] = []
        async with served(say) as url, transport() as client:
            response = await client.handle_async_request(request(url, silence=0.2))
            with pytest.raises(httpx.ReadTimeout):
                await drain(response, got)
        return got

    assert b"".join(asyncio.run(run())) == b"a" * 8


def test_no_answer_in_time() -> None:
    async def run() -> None:
        async with served(Server([b"HTTP/1.1 1"], OK)) as url, transport() as client:
            await client.handle_async_request(request(url, silence=0.05))

    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(run())


def test_nobody_there() -> None:
    async def run() -> None:
        async with served(Server()) as url:
            pass
        async with transport() as client:
            await client.handle_async_request(request(url))

    with pytest.raises(httpx.ConnectError):
        asyncio.run(run())


@pytest.mark.parametrize("when", ["before the head", "in mid-body", "half read"])
def test_who_leaves_ends_the_work(when: str) -> None:
    """Cancelled or closed, the connection is gone at once."""

    async def run() -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
        gone = asyncio.Event()

        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if when != "before the head":
                writer.write(head)
            with suppress(ConnectionError):
                await reader.read()
            gone.set()
            writer.close()

        async with served(say) as url, transport() as client:
            work = asyncio.ensure_future(client.handle_async_request(request(url)))
            if when == "before the head":
                await asyncio.sleep(0.05)
                work.cancel()
            else:
                response = await work
                if when == "half read":
                    assert await anext(response.stream.__aiter__()) == b"a"  # type: ignore[union-attr]
                await response.aclose()
            await asyncio.wait_for(gone.wait(), 2)

    asyncio.run(run())


def test_who_waits_for_more_is_told_that_it_was_closed() -> None:
    async def run() -> list[bytes]:
        got: list[bytes] = []
        async with (
            served(Server([framed([b"a"], "chunked")[:-5]], OK)) as url,
            transport() as client,
        ):
            response = await client.handle_async_request(request(url))
            reading = asyncio.ensure_future(drain(response, got))
            await asyncio.sleep(0.05)
            await response.aclose()
            await asyncio.wait_for(reading, 2)
        return got

    assert asyncio.run(run()) == [b"a"]


def test_a_slow_reader_holds_the_engine_up() -> None:
    """What waits here is bounded; once it is read, the rest comes, and nothing is lost."""

    async def run() -> tuple[int, int]:
        chunk = b"%x\r\n%b\r\n" % (4096, b"x" * 4096)
        sent = 0

        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(8_000):
                writer.write(chunk)
                await writer.drain()
                sent += 1
            writer.write(b"0\r\n\r\n")
            writer.close()

        async with served(say) as url, transport() as client:
            # Its silence is the reader's doing: no time-out.
            response = await client.handle_async_request(request(url, silence=0.3))
            await asyncio.sleep(1.0)
            held_up = sent
            body = await response.aread()
        return held_up, len(body)

    held_up, size = asyncio.run(run())
    assert held_up < 6_000  # the rest of it is the kernel's
    assert size == 8_000 * 4096


def test_nobody_hears_another_requests_answer() -> None:
    async def run() -> list[bytes]:
        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError:
                    return
                path = head.split()[1]
                await asyncio.sleep(0.001 * (len(path) % 3))
                writer.write(framed([path[:2], path[2:]], "chunked"))

        async with served(say) as url, transport() as client:

            async def ask(number: int) -> bytes:
                _, body = await whole(client, request(f"{url}/{number}"))
                return body

            first = await asyncio.gather(*(ask(n) for n in range(40)))
            return [*first, *await asyncio.gather(*(ask(n) for n in range(40, 80)))]

    assert asyncio.run(run()) == [b"/%d" % n for n in range(80)]


def test_an_engine_behind_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificate is checked: one that nobody vouches for is refused."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=a"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", *make.split(), *more], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def run() -> tuple[int, bytes]:
        async with served(Server(OK), ssl=context) as url, transport() as client:
            return await whole(client, request(url.replace("http", "https")))

    with pytest.raises(httpx.ConnectError):
        asyncio.run(run())
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asyncio.run(run()) == (200, b"ok")
