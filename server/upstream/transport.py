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

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from adjourn.server.upstream import http

__all__ = ["Transport"]

_Origin = tuple[str, str, int]


class Transport(http.AsyncBaseTransport):
    """Requests are sent whole, with the time-outs ``connect`` and ``read`` (of silence) of their
    extensions, in seconds; redirects, cookies, proxies and compression are not its business.

    ``keep``: seconds for which an idle connection may be used again. ``high_water``: bytes of a
    reply that wait here at most before the engine is held up.
    """

    def __init__(self, keepalive_expiry: float, high_water: int) -> None:
        self._keepalive_expiry = keepalive_expiry
        self._high_water = high_water
        self._idle: dict[_Origin, dict[_Connection, float]] = {}  # the latest last

    async def handle_async_request(self, request: http.Request) -> http.Response:
        content = await request.aread()
        timeouts = request.extensions.get("timeout", {})
        url = request.url
        origin = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        # One that was kept may have been closed by the other side just as it is taken; nothing was
        # begun then.
        if (kept := self._take_idle(origin)) is not None:
            exchange = _Exchange(kept, request.method, self._high_water)
            if await exchange.start(request, content, timeouts.get("read"), reused=True):
                return exchange.build_response(request)
        connection = await self._connect(origin, timeouts.get("connect"))
        exchange = _Exchange(connection, request.method, self._high_water)
        await exchange.start(request, content, timeouts.get("read"))
        return exchange.build_response(request)

    async def aclose(self) -> None:
        for connections in self._idle.values():
            for connection in list(connections):
                connection.abort()
        self._idle.clear()

    async def _connect(self, origin: _Origin, patience: float | None) -> _Connection:
        scheme, host, port = origin
        context = self._ssl_context if scheme == "https" else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience):
                _, connection = await loop.create_connection(
                    lambda: _Connection(
                        loop, lambda c: self._put_idle(origin, c), self._remove_idle
                    ),
                    host,
                    port,
                    ssl=context,
                )
        except TimeoutError as error:
            raise http.ConnectTimeout(f"no connection to {host}:{port} in time") from error
        except OSError as error:
            raise http.ConnectError(str(error)) from error
        return connection

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return http.create_ssl_context()

    def _take_idle(self, origin: _Origin) -> _Connection | None:
        idle = self._idle.get(origin)
        if not idle:
            return None
        connection, since = idle.popitem()
        if connection.loop.time() - since <= self._keepalive_expiry:
            return connection
        connection.abort()
        for older in list(idle):
            older.abort()
        idle.clear()
        return None

    def _put_idle(self, origin: _Origin, connection: _Connection) -> None:
        idle, now = self._idle.setdefault(origin, {}), connection.loop.time()
        idle[connection] = now
        oldest, since = next(iter(idle.items()))
        if now - since > self._keepalive_expiry:
            del idle[oldest]
            oldest.abort()

    def _remove_idle(self, connection: _Connection) -> None:
        for idle in self._idle.values():
            idle.pop(connection, None)


class _Connection(asyncio.Protocol):
    """A connection, with the exchange that it carries at the moment, if any."""

    transport: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_reusable: Callable[[_Connection], None],
        on_lost: Callable[[_Connection], None],
    ) -> None:
        self.loop = loop
        self.last_received_at = 0.0
        self.exchange: _Exchange | None = None
        self._parser: HttpResponseParser | None = None
        self._on_reusable = on_reusable
        self._on_lost = on_lost

    def send_request(self, exchange: _Exchange, head: bytes, content: bytes) -> HttpResponseParser:
        self.exchange = exchange
        self._parser = HttpResponseParser(exchange)
        self.last_received_at = self.loop.time()
        self.transport.writelines([head, content])
        return self._parser

    def finish_exchange(self, reusable: bool) -> None:
        """The exchange is over, and with it the cycle of all that takes part in it."""
        self.exchange = self._parser = None
        if reusable and not self.transport.is_closing():
            self._on_reusable(self)
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
        self.last_received_at = self.loop.time()
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            exchange.fail(http.RemoteProtocolError(f"what the engine sent is no HTTP: {error}"))
            return
        exchange.after_data(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)
        if self.exchange is not None:
            self.exchange.after_connection_lost(exc)


class _Exchange(http.AsyncByteStream):
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
        self._buffered_bytes = 0
        self._paused = False
        self._is_complete = self._reusable = False
        self._ends_at_close = True  # nothing in the head says where the body ends
        self._error: http.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(
        self,
        request: http.Request,
        content: bytes,
        read_timeout: float | None,
        reused: bool = False,
    ) -> bool:
        """Send the request and wait for the head of its reply. False where a ``kept`` connection
        was lost before any of it came."""
        connection = self._connection
        assert connection is not None
        self._parser = connection.send_request(self, _encode_head(request), content)
        self._check_read_timeout(read_timeout)
        try:
            while not self.status and self._error is None:
                await self._new_waiter(connection.loop)
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if self._error is None or self.status:
            return True
        if reused and isinstance(self._error, http.ReadError):
            return False
        raise self._error

    def build_response(self, request: http.Request) -> http.Response:
        return http.Response(self.status, headers=self._headers, stream=self, request=request)

    def __aiter__(self) -> _Exchange:
        return self

    async def __anext__(self) -> bytes:
        """All that has come since."""
        parts = self._parts
        while not parts:
            if self._error is not None:
                raise self._error
            if self._is_complete or self._connection is None:
                raise StopAsyncIteration
            await self._new_waiter(self._connection.loop)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._buffered_bytes = 0
        if self._paused:
            self._paused = False
            if self._connection is not None:
                self._connection.last_received_at = self._connection.loop.time()
                self._connection.transport.resume_reading()
        return data

    async def aclose(self) -> None:
        """Ends the engine's work, where it is not over, and who waits for more of it."""
        if (connection := self._detach()) is not None:
            connection.abort()
        self._wake()

    # -- what the connection brings ------------------------------------------------------------

    def after_data(self, size: int) -> None:
        """The parser has seen so many bytes more."""
        connection = self._connection
        if self._is_complete:
            if self._method == "HEAD":
                self._parts.clear()
            if (connection := self._detach()) is not None:
                connection.finish_exchange(self._reusable)
        else:
            self._buffered_bytes += size
            if (
                self._buffered_bytes > self._high_water
                and not self._paused
                and connection is not None
            ):
                self._paused = True
                connection.transport.pause_reading()
        self._wake()

    def after_connection_lost(self, cause: Exception | None) -> None:
        if self.status and self._ends_at_close and cause is None:
            self._is_complete = True
            self._detach()
            self._wake()
        else:
            self.fail(http.ReadError("the engine closed the connection"))

    def fail(self, error: http.TransportError) -> None:
        if not self._is_complete:  # behind its end, it is the connection's alone
            self._error = error
        if (connection := self._detach()) is not None:
            connection.abort()
        self._wake()

    # -- what the parser finds -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_complete:  # whose reply this is, nobody can say: the parser stops, and fails
            raise http.RemoteProtocolError("a reply that nobody asked for")

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
        self._ends_at_close = names.isdisjoint((b"content-length", b"transfer-encoding"))
        if self._method == "HEAD":
            self._is_complete = True  # the parser waits for what the head announces

    def on_message_complete(self) -> None:
        if self._parser is not None and self.status:
            self._is_complete = True
            self._reusable = self._parser.should_keep_alive()

    # ------------------------------------------------------------------------------------------

    def _detach(self) -> _Connection | None:
        """The connection, which is no longer this exchange's."""
        connection, self._connection, self._parser = self._connection, None, None
        if connection is not None and self._paused:
            self._paused = False
            connection.transport.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return connection

    def _new_waiter(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        self._waiter = waiter = loop.create_future()
        return waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _check_read_timeout(self, read_timeout: float | None) -> None:
        """End the exchange when nothing was heard for so long. The timer is not moved with each
        read: it looks, when it is due, how long it is to wait still."""
        connection = self._connection
        if read_timeout is None or connection is None:
            return
        now = connection.loop.time()
        left = read_timeout if self._paused else connection.last_received_at + read_timeout - now
        if left <= 0:
            self.fail(http.ReadTimeout(f"nothing came for {read_timeout:g} s"))
        else:
            self._timer = connection.loop.call_later(left, self._check_read_timeout, read_timeout)


def _encode_head(request: http.Request) -> bytes:
    lines = [request.method.encode("ascii"), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)
