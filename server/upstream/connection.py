"""One HTTP/1.1 connection, and the exchange of a request and its response on it.

llhttp parses the responses, through httptools. A connection carries one exchange at a time:

    connection   exchange  in Transport._idle  next
    -----------  --------  ------------------  ----------------------------------------------------
    idle         None      yes                 in exchange, by ``send_request``;
                                               closed, by ``abort`` or by any received byte
    in exchange  set       no                  idle, if the response is complete and allows reuse;
                                               closed otherwise
    closed       unused    no                  (never used again)

    exchange     condition                     next
    -----------  ----------------------------  ----------------------------------------------------
    waiting      ``status`` is 0               streaming, when the head is complete
    streaming    ``status`` is set             complete, failed or closed
    complete     ``_is_complete``              (its buffered data can still be read)
    failed       ``_error`` is set             (buffered data first, then the error is raised)
    closed       neither, no ``_connection``   (closed by its reader: reading ends)

An exchange refers to its connection while it is waiting or streaming. ``_detach`` removes that
reference on every way out, stops the timer and resumes reading, so a connection that becomes idle
is never paused, and a finished exchange cannot affect the next one. It also breaks the reference
cycle, so a finished exchange is freed without the garbage collector.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from adjourn.server.upstream import http

__all__ = ["Connection", "Exchange"]


class Connection(asyncio.Protocol):
    """A connection, with the exchange that it carries at the moment, if any.

    ``on_reusable`` is called when the connection becomes idle, ``on_lost`` when it is closed.

    state               content                                      changed by
    ------------------  -------------------------------------------  ---------------------------
    exchange, _parser   those of the current exchange, set and       send_request;
                        cleared together; None while it is idle      finish_exchange, abort
    last_received_at    the loop's time, in seconds, of the latest   send_request, data_received,
                        data, or of the end of a pause               Exchange.__anext__
    """

    transport: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_reusable: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self.loop = loop
        self.last_received_at = 0.0
        self.exchange: Exchange | None = None
        self._parser: HttpResponseParser | None = None
        self._on_reusable = on_reusable
        self._on_lost = on_lost

    def send_request(self, exchange: Exchange, head: bytes, content: bytes) -> HttpResponseParser:
        """Send the request of ``exchange``, which gets the response from now on."""
        self.exchange = exchange
        self._parser = HttpResponseParser(exchange)
        self.last_received_at = self.loop.time()
        self.transport.writelines([head, content])
        return self._parser

    def finish_exchange(self, reusable: bool) -> None:
        """The response is complete: become idle if the connection may be reused, else close."""
        self.exchange = self._parser = None
        if reusable and not self.transport.is_closing():
            self._on_reusable(self)
        else:
            self.transport.close()

    def abort(self) -> None:
        """Close the connection at once, so that the engine stops working for it."""
        self.exchange = self._parser = None
        self.transport.abort()

    # The methods below are called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        exchange, parser = self.exchange, self._parser
        if exchange is None or parser is None:
            self.transport.abort()  # data without a request
            return
        self.last_received_at = self.loop.time()
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            exchange.fail(http.RemoteProtocolError(f"the response is not valid HTTP/1.1: {error}"))
            return
        exchange.after_data(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)
        if self.exchange is not None:
            self.exchange.after_connection_lost(exc)


class Exchange(http.AsyncByteStream):
    """One request and the stream of its response. The parser calls the methods ``on_*``.

    At most one task waits for an exchange: in ``start`` or in ``__anext__``. Every change that it
    may wait for calls ``_wake``.

    state              content                                         changed by
    -----------------  ----------------------------------------------  -------------------------
    status             status code; 0 until the head is complete       on_headers_complete
    _headers           the headers, in order                           on_header; cleared after an
                                                                       interim response
    _parts             body data that is received and not yet read     on_body; __anext__
    _buffered_bytes    bytes received since the last read, framing     after_data; __anext__
                       included
    _paused            the connection's reading is paused; only while  after_data; __anext__,
                       ``_connection`` is set                          _detach
    _ends_at_close     the end of the connection ends the body         on_headers_complete
    _is_complete       the whole response was received                 on_message_complete,
                                                                       on_headers_complete (HEAD),
                                                                       after_connection_lost
    _reusable          the connection can carry another exchange       on_message_complete
    _error             why the response will not be complete; never    fail
                       together with ``_is_complete``
    _connection,       set until the exchange is complete, failed or   start; _detach
    _parser, _timer    closed
    _waiter            the future that the waiting task awaits         _new_waiter; _wake
    """

    def __init__(self, connection: Connection, method: str, high_water: int) -> None:
        self.status = 0
        self._connection: Connection | None = connection
        self._parser: HttpResponseParser | None = None
        self._method = method
        self._high_water = high_water
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # the parser's callback; the list is never replaced
        self._buffered_bytes = 0
        self._paused = False
        self._is_complete = self._reusable = False
        self._ends_at_close = True
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
        """Send the request and wait for the head of its response.

        Returns False if a ``reused`` connection was lost before the head: the request may be sent
        again. Otherwise returns True or raises a TransportError.
        """
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
        """The response to ``request``, whose body is this stream. Call after ``start``."""
        return http.Response(self.status, headers=self._headers, stream=self, request=request)

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> bytes:
        """All body data received since the last call; waits if there is none."""
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
                # The silence during the pause was not the engine's: restart the read timeout.
                self._connection.last_received_at = self._connection.loop.time()
                self._connection.transport.resume_reading()
        return data

    async def aclose(self) -> None:
        """Close the connection if the response is not complete, and end a pending read."""
        if (connection := self._detach()) is not None:
            connection.abort()
        self._wake()

    # The methods below are called by the connection.

    def after_data(self, size: int) -> None:
        """The parser has consumed ``size`` bytes: finish the exchange if they complete the
        response, else pause the connection if the reader is too slow."""
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
        """The connection is closed: a normal end only for a body without a length."""
        if self.status and self._ends_at_close and cause is None:
            self._is_complete = True
            self._detach()
            self._wake()
        else:
            self.fail(http.ReadError("the engine closed the connection"))

    def fail(self, error: http.TransportError) -> None:
        """Close the connection; its reader gets the error after the data received before it."""
        if not self._is_complete:  # after a complete response the error concerns the connection
            self._error = error
        if (connection := self._detach()) is not None:
            connection.abort()
        self._wake()

    # The methods below are called by the parser.

    def on_message_begin(self) -> None:
        if self._is_complete:
            # Data after the response belongs to no request. Raising stops the parser, and the
            # connection is closed, so no later request can get this data as its response.
            raise http.RemoteProtocolError("a response without a request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()  # an interim response: the final one follows
            return
        self.status = status
        names = {name.lower() for name, _ in self._headers}
        self._ends_at_close = names.isdisjoint((b"content-length", b"transfer-encoding"))
        if self._method == "HEAD":
            self._is_complete = True  # the parser would wait for a body of the announced length

    def on_message_complete(self) -> None:
        if self._parser is not None and self.status:
            self._is_complete = True
            self._reusable = self._parser.should_keep_alive()

    def _detach(self) -> Connection | None:
        """Give up the connection, and return it if the exchange still had it."""
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
        """Fail if nothing was received for ``read_timeout`` seconds, else check again later.

        The timer is not moved at each read, which would cost time for every token. When it is due,
        it computes from ``last_received_at`` how long to wait. A pause does not count as silence.
        """
        connection = self._connection
        if read_timeout is None or connection is None:
            return
        now = connection.loop.time()
        left = read_timeout if self._paused else connection.last_received_at + read_timeout - now
        if left <= 0:
            self.fail(http.ReadTimeout(f"nothing was received for {read_timeout:g} s"))
        else:
            self._timer = connection.loop.call_later(left, self._check_read_timeout, read_timeout)


def _encode_head(request: http.Request) -> bytes:
    lines = [request.method.encode("ascii"), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)
