"""Responses that carry an engine's work, and end that work when the client goes away.

Bare ASGI tells of a client that left only to who asks: each response here watches for it while it
works, before the first token, in mid-stream, and while an unstreamed reply is due.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence

import httpx
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.engine import TRANSPORT_ERRORS, Engine
from server.errors import GatewayError, ShuttingDown, body_at, broken_off, event_at
from server.metrics import Metrics
from server.sinks import reply_headers

__all__ = ["Abandonable", "Passage", "WithRawSend", "send_error"]
RAW_SEND = "adjourn.send"


class WithRawSend:
    """Around the whole application, whose own outermost layer wraps ``send`` already: keeps the
    server's for the streams."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[RAW_SEND] = send
        await self._app(scope, receive, send)


class Abandonable(Response):
    """``work`` runs until it is done or the client left; then it is cancelled.

    ``labels`` are the metrics' (endpoint, model, policy), ``arrived`` the time of the request.
    """

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str], arrived: float) -> None:
        self.background = None
        self.metrics = metrics
        self.labels = labels
        self.arrived = arrived
        self.path = labels[0]

    @property
    @abstractmethod
    def began(self) -> bool:
        """Whether anything was sent."""

    @property
    def finished(self) -> bool:
        """Whether the client has all of it, though its connection is not ended yet: some wait for
        no more than their API's last event."""
        return False

    @abstractmethod
    async def work(self, send: Send) -> int:
        """Send the response and return its status. A GatewayError is answered with where nothing
        was sent before."""

    @property
    @abstractmethod
    def phase(self) -> str:
        """Where the work stands, for the count of clients that left."""

    def ended(self, status: int) -> None:
        """Called once, however it ended; 499 where the client left."""
        self.metrics.requests.labels(*self.labels, str(status)).inc()
        self.metrics.duration.labels(*self.labels).observe(time.perf_counter() - self.arrived)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        in_flight = self.metrics.in_flight.labels(self.labels[0])
        in_flight.inc()
        # Each layer of the framework wraps ``send``; a stream calls it once a token.
        work = asyncio.ensure_future(self._guarded(scope.pop(RAW_SEND, send)))
        watch = asyncio.ensure_future(self._watch(receive, work))
        status = 500
        try:
            status = await work
        except asyncio.CancelledError:
            if not watch.done():
                await self._shut_down(send)
                raise
            status = 200
            if not self.finished:
                status = 499
                self.metrics.disconnects.labels(self.phase).inc()
                self.metrics.aborts.labels("client-left").inc()
        finally:
            watch.cancel()
            in_flight.dec()
            self.ended(status)

    async def _shut_down(self, send: Send) -> None:
        """The server ends while this runs: say so as far as it can still be said."""
        error = ShuttingDown("the gateway is shutting down")
        if not self.began:
            await send_error(send, error, self.path)

    async def _guarded(self, send: Send) -> int:
        try:
            return await self.work(send)
        except GatewayError as error:
            if error.reason is not None:
                self.metrics.upstream_errors.labels(error.reason).inc()
            if not self.began:
                await send_error(send, error, self.path)
            return error.status

    @staticmethod
    async def _watch(receive: Receive, work: asyncio.Future[int]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        work.cancel()


async def send_error(send: Send, error: GatewayError, path: str) -> None:
    body = body_at(path, error)
    headers = [(k.encode(), v.encode()) for k, v in error.headers.items()]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Passage(Abandonable):
    """Hand a request through: what comes back is the engine's, byte for byte."""

    def __init__(
        self,
        metrics: Metrics,
        labels: tuple[str, str, str],
        arrived: float,
        engine: Engine,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        extra: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(metrics, labels, arrived)
        self._engine = engine
        self.path = path
        self._call = (method, path, headers, body or None)
        self._extra = extra
        self._began = False

    @property
    def began(self) -> bool:
        return self._began

    @property
    def phase(self) -> str:
        return "streaming" if self.began else "before-first-token"

    async def work(self, send: Send) -> int:
        response = await self._engine.send(*self._call)
        try:
            headers = reply_headers(response, self._extra)
            length = response.headers.get("content-length")
            if length is not None and response.status_code not in (204, 304):
                headers.append((b"content-length", length.encode()))
            self._began = True
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": headers,
                }
            )
            try:
                async for data in response.stream:  # type: ignore[union-attr]
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except TRANSPORT_ERRORS as cause:
                timeout = isinstance(cause, httpx.ReadTimeout)
                error = broken_off("timeout" if timeout else "broken")
                await self._broke_off(send, response, error)
                return error.status
            await send({"type": "http.response.body", "body": b""})
            return response.status_code
        finally:
            await response.aclose()

    async def _broke_off(self, send: Send, response: httpx.Response, error: GatewayError) -> None:
        """An error event where a stream can carry one; the connection is broken in any case."""
        self.metrics.upstream_errors.labels(error.reason).inc()
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            event = event_at(self.path, error)
            await send({"type": "http.response.body", "body": event, "more_body": True})
