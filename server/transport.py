"""HTTP/1.1 to an engine, behind httpx's interface.

Every token of every stream passes through the HTTP client, and one that is made for all cases costs
more than everything else that is done with a token (docs/benchmarks.md). What is here is made for
one case: few hosts, whole requests, long streamed replies. The parsing is llhttp's, by httptools.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import cached_property
from typing import cast

import httpx
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = ["Transport"]

_Origin = tuple[str, str, int]


class Transport(httpx.AsyncBaseTransport):
    """Requests are sent whole, with the time-outs ``connect`` and ``read`` (of silence) of their
    extensions, in seconds; redirects, cookies, proxies and compression are not its business.

    ``keep``: seconds for which an idle connection may be used again. ``high_water``: bytes of a
    reply that wait here at most before the engine is held up.
    """

    def __init__(self, keep: float, high_water: int) -> None:
        self._keep = keep
        self._high_water = high_water
        self._idle: dict[_Origin, dict[_Connection, float]] = {}  # the latest last

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        timeouts = request.extensions.get("timeout", {})
        url = request.url
        origin = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        # One that was kept may have been closed by the other side just as it is taken; nothing was
        # begun then.
        if (kept := self._take(origin)) is not None:
            exchange = _Exchange(kept, request.method, self._high_water)
            if await exchange.begun(request, content, timeouts.get("read"), kept=True):
                return exchange.response(request)
        connection = await self._connect(origin, timeouts.get("connect"))
        exchange = _Exchange(connection, request.method, self._high_water)
        await exchange.begun(request, content, timeouts.get("read"))
        return exchange.response(request)

    async def aclose(self) -> None:
        for connections in self._idle.values():
            for connection in list(connections):
                connection.abort()
        self._idle.clear()

    async def _connect(self, origin: _Origin, patience: float | None) -> _Connection:
        scheme, host, port = origin
        context = self._context if scheme == "https" else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop, lambda c: self._put(origin, c), self._forget),
                    host,
                    port,
                    ssl=context,
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} in time") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()

    def _take(self, origin: _Origin) -> _Connection | None:
        idle = self._idle.get(origin)
        if not idle:
            return None
        connection, since = idle.popitem()
        if connection.loop.time() - since <= self._keep:
            return connection
        connection.abort()
        for older in list(idle):
            older.abort()
        idle.clear()
        return None

    def _put(self, origin: _Origin, connection: _Connection) -> None:
        idle, now = self._idle.setdefault(origin, {}), connection.loop.time()
        idle[connection] = now
        oldest, since = next(iter(idle.items()))
        if now - since > self._keep:
            del idle[oldest]
            oldest.abort()

    def _forget(self, connection: _Connection) -> None:
        for idle in self._idle.values():
            idle.pop(connection, None)


class _Connection(asyncio.Protocol):
    """A connection, with the exchange that it carries at the moment, if any."""

    transport: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        keep: Callable[[_Connection], None],
        forget: Callable[[_Connection], None],
    ) -> None:
        self.loop = loop
        self.heard = 0.0
        self.exchange: _Exchange | None = None
        self._parser: HttpResponseParser | None = None
        self._keep = keep
        self._forget = forget

    def begin(self, exchange: _Exchange, head: bytes, content: bytes) -> HttpResponseParser:
        self.exchange = exchange
        self._parser = HttpResponseParser(exchange)
        self.heard = self.loop.time()
        self.transport.writelines([head, content])
        return self._parser

    def finished(self, reusable: bool) -> None:
        """The exchange is over, and with it the cycle of all that takes part in it."""
        self.exchange = self._parser = None
        if reusable and not self.transport.is_closing():
            self._keep(self)
        else:
            self.transport.close()

    def abort(self) -> None:
        self.exchange = self._parser = None
        self.transport.abort()

    # -- asyncio's side ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        exchange, parser = self.exchange, self._parser
        if exchange is None or parser is None:
            self.transport.abort()  # nobody asked
            return
        self.heard = self.loop.time()
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            exchange.fail(httpx.RemoteProtocolError(f"what the engine sent is no HTTP: {error}"))
            return
        exchange.arrived(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget(self)
        if self.exchange is not None:
            self.exchange.lost(exc)


class _Exchange(httpx.AsyncByteStream):
    """One request and the stream of its reply; what the parser finds is called for here."""

    def __init__(self, connection: _Connection, method: str, high_water: int) -> None:
        self.status = 0
        self._connection: _Connection | None = connection
        self._parser: HttpResponseParser | None = None
        self._method = method
        self._high_water = high_water
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        self._size = 0
        self._paused = False
        self._over = self._reusable = False
        self._until_close = True  # nothing in the head says where the body ends
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def begun(
        self, request: httpx.Request, content: bytes, silence: float | None, kept: bool = False
    ) -> bool:
        """Send the request and wait for the head of its reply. False where a ``kept`` connection
        was lost before any of it came."""
        connection = self._connection
        assert connection is not None
        self._parser = connection.begin(self, _head_of(request), content)
        self._watch(silence)
        try:
            while not self.status and self._error is None:
                await self._news(connection.loop)
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if self._error is None or self.status:
            return True
        if kept and isinstance(self._error, httpx.ReadError):
            return False
        raise self._error

    def response(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.status, headers=self._headers, stream=self, request=request)

    def __aiter__(self) -> _Exchange:
        return self

    async def __anext__(self) -> bytes:
        """All that has come since."""
        parts = self._parts
        while not parts:
            if self._error is not None:
                raise self._error
            if self._over or self._connection is None:
                raise StopAsyncIteration
            await self._news(self._connection.loop)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            if self._connection is not None:
                self._connection.heard = self._connection.loop.time()
                self._connection.transport.resume_reading()
        return data

    async def aclose(self) -> None:
        """Ends the engine's work, where it is not over, and who waits for more of it."""
        if (connection := self._detached()) is not None:
            connection.abort()
        self._wake()

    # -- what the connection brings ------------------------------------------------------------

    def arrived(self, size: int) -> None:
        """The parser has seen so many bytes more."""
        connection = self._connection
        if self._over:
            if self._method == "HEAD":
                self._parts.clear()
            if (connection := self._detached()) is not None:
                connection.finished(self._reusable)
        else:
            self._size += size
            if self._size > self._high_water and not self._paused and connection is not None:
                self._paused = True
                connection.transport.pause_reading()
        self._wake()

    def lost(self, cause: Exception | None) -> None:
        if self.status and self._until_close and cause is None:
            self._over = True
            self._detached()
            self._wake()
        else:
            self.fail(httpx.ReadError("the engine closed the connection"))

    def fail(self, error: httpx.TransportError) -> None:
        if not self._over:  # behind its end, it is the connection's alone
            self._error = error
        if (connection := self._detached()) is not None:
            connection.abort()
        self._wake()

    # -- what the parser finds -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._over:  # whose reply this is, nobody can say: the parser stops, and fails
            raise httpx.RemoteProtocolError("a reply that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()  # the reply proper is to come
            return
        self.status = status
        names = {name.lower() for name, _ in self._headers}
        self._until_close = names.isdisjoint((b"content-length", b"transfer-encoding"))
        if self._method == "HEAD":
            self._over = True  # the parser waits for what the head announces

    def on_message_complete(self) -> None:
        if self._parser is not None and self.status:
            self._over = True
            self._reusable = self._parser.should_keep_alive()

    # ------------------------------------------------------------------------------------------

    def _detached(self) -> _Connection | None:
        """The connection, which is no longer this exchange's."""
        connection, self._connection, self._parser = self._connection, None, None
        if connection is not None and self._paused:
            self._paused = False
            connection.transport.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return connection

    def _news(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        self._waiter = waiter = loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _watch(self, silence: float | None) -> None:
        """End the exchange when nothing was heard for so long. The timer is not moved with each
        read: it looks, when it is due, how long it is to wait still."""
        connection = self._connection
        if silence is None or connection is None:
            return
        now = connection.loop.time()
        left = silence if self._paused else connection.heard + silence - now
        if left <= 0:
            self.fail(httpx.ReadTimeout(f"nothing came for {silence:g} s"))
        else:
            self._timer = connection.loop.call_later(left, self._watch, silence)


def _head_of(request: httpx.Request) -> bytes:
    lines = [request.method.encode("ascii"), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)
