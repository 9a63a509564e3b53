"""Sends HTTP/1.1 requests to an engine, through httpx's transport interface.

Every streamed token passes through the HTTP client, and a general-purpose client costs more than
everything else that the gateway does with a token (docs/benchmarks.md). This one supports what the
gateway needs: a few hosts, requests sent as a whole, and long streamed responses.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import cached_property

from adjourn.server.upstream import http
from adjourn.server.upstream.connection import Connection, Exchange

__all__ = ["Transport"]

_Origin = tuple[str, str, int]


class Transport(http.AsyncBaseTransport):
    """Opens connections, keeps idle ones and uses them again.

    A request's ``timeout`` extension may set ``connect`` and ``read``, in seconds; ``read`` limits
    the silence between two reads. Redirects, cookies, proxies and compression are not handled.

    ``keepalive_expiry``: seconds for which an idle connection may be used again. ``high_water``:
    bytes of a response that are buffered before the engine's connection is paused.

    State: ``_idle``, the connections of each origin that are open and carry no exchange, with the
    time at which each became idle, the latest last. ``_put_idle`` adds one, ``_take_idle`` removes
    the one that it returns, so no connection is used by two requests at once; ``_remove_idle`` and
    ``aclose`` remove closed ones.
    """

    def __init__(self, keepalive_expiry: float, high_water: int) -> None:
        self._keepalive_expiry = keepalive_expiry
        self._high_water = high_water
        self._idle: dict[_Origin, dict[Connection, float]] = {}

    async def handle_async_request(self, request: http.Request) -> http.Response:
        """Send the request and return once the head of the response is complete.

        The caller closes the response. Raises the exceptions under ``http.TransportError``.
        """
        content = await request.aread()
        timeouts = request.extensions.get("timeout", {})
        url = request.url
        origin = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        # The engine may close an idle connection at the moment at which we reuse it. It has not
        # started on the request then, so the request is sent once more, on a new connection.
        if (kept := self._take_idle(origin)) is not None:
            exchange = Exchange(kept, request.method, self._high_water)
            if await exchange.start(request, content, timeouts.get("read"), reused=True):
                return exchange.build_response(request)
        connection = await self._connect(origin, timeouts.get("connect"))
        exchange = Exchange(connection, request.method, self._high_water)
        await exchange.start(request, content, timeouts.get("read"))
        return exchange.build_response(request)

    async def aclose(self) -> None:
        """Close the idle connections. Exchanges in progress are not affected."""
        for connections in self._idle.values():
            for connection in list(connections):
                connection.abort()
        self._idle.clear()

    async def _connect(self, origin: _Origin, connect_timeout: float | None) -> Connection:
        scheme, host, port = origin
        context = self._ssl_context if scheme == "https" else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(
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

    def _take_idle(self, origin: _Origin) -> Connection | None:
        """Remove and return the connection that became idle last. If it expired, so have all
        others: they are closed, and None is returned."""
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

    def _put_idle(self, origin: _Origin, connection: Connection) -> None:
        """Keep this connection, and close the oldest one if it expired. Each call adds one and
        checks one, so unused connections do not accumulate."""
        idle, now = self._idle.setdefault(origin, {}), connection.loop.time()
        idle[connection] = now
        oldest, since = next(iter(idle.items()))
        if now - since > self._keepalive_expiry:
            del idle[oldest]
            oldest.abort()

    def _remove_idle(self, connection: Connection) -> None:
        """The connection is lost. It may have been idle."""
        for idle in self._idle.values():
            idle.pop(connection, None)
