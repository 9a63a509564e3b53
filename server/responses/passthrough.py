"""Responses that cancel the engine's work when the client disconnects.

ASGI reports a disconnect only to an application that calls ``receive``. Each response here does so
the whole time: before the first token, during the stream, and while it builds a JSON reply.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adjourn.server.errors import (
    GatewayError,
    ShuttingDown,
    error_body,
    error_event,
    interruption_error,
)
from adjourn.server.metrics import Metrics
from adjourn.server.stream.sinks import response_headers
from adjourn.server.upstream import http
from adjourn.server.upstream.client import TRANSPORT_ERRORS, EngineClient

__all__ = ["CancellableResponse", "Passthrough", "RawSendMiddleware", "send_error"]
RAW_SEND = "adjourn.send"


class RawSendMiddleware:
    """Keeps the server's own ``send`` in the scope, for the streams.

    It must wrap the whole application, whose outermost layer already wraps ``send``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[RAW_SEND] = send
        await self._app(scope, receive, send)


class CancellableResponse(Response):
    """A response whose ``respond`` is cancelled when the client disconnects.

    ``labels`` are the metrics' (endpoint, model, policy). ``arrived`` is the request's time in
    seconds on the monotonic clock.
    """

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str], arrived: float) -> None:
        self.background = None
        self.metrics = metrics
        self.labels = labels
        self.arrived = arrived
        self.path = labels[0]

    @property
    @abstractmethod
    def has_started(self) -> bool:
        """True if anything was sent."""

    @property
    def is_complete(self) -> bool:
        """True if the client has its API's last event, though the response has not ended yet.

        Some clients disconnect as soon as they have that event.
        """
        return False

    @abstractmethod
    async def respond(self, send: Send) -> int:
        """Send the response and return its status.

        A GatewayError that is raised before anything was sent becomes the response.
        """

    @property
    @abstractmethod
    def phase(self) -> str:
        """How far the response is, as the label of the metric of client disconnects."""

    def record_end(self, status: int) -> None:
        """Record metrics. Called once, however the response ended; 499 if the client left."""
        self.metrics.requests.labels(*self.labels, str(status)).inc()
        self.metrics.request_duration.labels(*self.labels).observe(
            time.perf_counter() - self.arrived
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        in_flight = self.metrics.requests_in_flight.labels(self.labels[0])
        in_flight.inc()
        # Each layer of the framework wraps ``send``, and a stream calls it for every token.
        work = asyncio.ensure_future(self._respond_or_send_error(scope.pop(RAW_SEND, send)))
        watch = asyncio.ensure_future(self._cancel_on_disconnect(receive, work))
        status = 500
        try:
            status = await work
        except asyncio.CancelledError:
            if not watch.done():
                await self._send_shutdown_error(send)
                raise
            status = 200
            if not self.is_complete:
                status = 499
                self.metrics.client_disconnects.labels(self.phase).inc()
                self.metrics.upstream_aborts.labels("client-left").inc()
        finally:
            watch.cancel()
            in_flight.dec()
            self.record_end(status)

    async def _send_shutdown_error(self, send: Send) -> None:
        """The server is shutting down: send that error if nothing was sent yet."""
        error = ShuttingDown("the gateway is shutting down")
        if not self.has_started:
            await send_error(send, error, self.path)

    async def _respond_or_send_error(self, send: Send) -> int:
        try:
            return await self.respond(send)
        except GatewayError as error:
            if error.reason is not None:
                self.metrics.upstream_errors.labels(error.reason).inc()
            if not self.has_started:
                await send_error(send, error, self.path)
            return error.status

    @staticmethod
    async def _cancel_on_disconnect(receive: Receive, work: asyncio.Future[int]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        work.cancel()


async def send_error(send: Send, error: GatewayError, path: str) -> None:
    """Send the error as a whole response, in the shape of the API that ``path`` belongs to."""
    body = error_body(path, error)
    headers = [(k.encode(), v.encode()) for k, v in error.headers.items()]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Passthrough(CancellableResponse):
    """Passes a request to the engine and returns the engine's response byte for byte.

    ``extra_headers`` are added to the engine's response headers.
    """

    def __init__(
        self,
        metrics: Metrics,
        labels: tuple[str, str, str],
        arrived: float,
        engine: EngineClient,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        extra_headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(metrics, labels, arrived)
        self._engine = engine
        self.path = path
        self._upstream_request = (method, path, headers, body or None)
        self._extra_headers = extra_headers
        self._has_started = False

    @property
    def has_started(self) -> bool:
        return self._has_started

    @property
    def phase(self) -> str:
        return "streaming" if self.has_started else "before-first-token"

    async def respond(self, send: Send) -> int:
        response = await self._engine.send(*self._upstream_request)
        try:
            headers = response_headers(response, self._extra_headers)
            length = response.headers.get("content-length")
            if length is not None and response.status_code not in (204, 304):
                headers.append((b"content-length", length.encode()))
            self._has_started = True
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
                timeout = isinstance(cause, http.ReadTimeout)
                error = interruption_error("timeout" if timeout else "broken")
                await self._send_stream_error(send, response, error)
                return error.status
            await send({"type": "http.response.body", "body": b""})
            return response.status_code
        finally:
            await response.aclose()

    async def _send_stream_error(
        self, send: Send, response: http.Response, error: GatewayError
    ) -> None:
        """Send an error event if the response is an event stream. The response is left unfinished,
        so the client also sees a broken connection."""
        self.metrics.upstream_errors.labels(error.reason).inc()
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            event = error_event(self.path, error)
            await send({"type": "http.response.body", "body": event, "more_body": True})
