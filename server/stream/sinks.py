"""Sinks: where a response under a policy is written. Here: the client's own stream."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from starlette.types import Send

from adjourn.server.errors import GatewayError
from adjourn.server.stream.chunk import encode_event
from adjourn.server.upstream import http
from adjourn.server.upstream.client import forwarded_headers

__all__ = ["Sink", "StreamSink", "forward_response", "response_headers"]

_STREAM_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx would buffer the stream
)
# uvicorn writes its own date, and editing events changes the length.
_DROPPED_HEADERS = (b"date", b"content-length")


class Sink(Protocol):
    """The client's stream, or an assembler for a client that does not stream.

    ``has_started``: the client has received the response's head. ``open`` comes first, then any
    number of ``write``, then ``end`` or ``fail``; ``forward_response`` replaces all of them.
    """

    has_started: bool

    def open(self, response: http.Response) -> None:
        """The engine accepted the request; ``response`` has its headers."""

    async def forward_response(self, response: http.Response) -> None:
        """The engine refused the request: send its status, headers and body unmodified."""

    def write(self, events: list[bytes]) -> Awaitable[None]:
        """Send events, in order."""

    async def end(self, summary: dict[str, Any] | None) -> None:
        """The response is complete. ``summary``: the value of its ``adjourn`` field, if any."""

    async def fail(self, error: GatewayError) -> None:
        """The response cannot be completed: what was sent must not look complete."""


def response_headers(
    response: http.Response, extra_headers: Sequence[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """The engine's response headers for the client; ``extra_headers`` replace its own."""
    ours = {name for name, _ in extra_headers}
    raw = [(name.lower(), value) for name, value in response.headers.raw]
    kept = forwarded_headers(raw, strip_gateway_headers=False)
    return [(n, v) for n, v in kept if n not in _DROPPED_HEADERS and n not in ours] + list(
        extra_headers
    )


class StreamSink:
    """Writes to the client's stream.

    Invariant: the head is sent with the first events, so that a failure before them can still be
    answered with an error status.
    """

    def __init__(self, send: Send, extra_headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.has_started = False
        self._send = send
        self._extra_headers = extra_headers
        self._headers: list[tuple[bytes, bytes]] = []

    def open(self, response: http.Response) -> None:
        self._headers = response_headers(response, (*_STREAM_HEADERS, *self._extra_headers))

    async def forward_response(self, response: http.Response) -> None:
        self.has_started = True
        await forward_response(self._send, response, self._extra_headers)

    def write(self, events: list[bytes]) -> Awaitable[None]:
        body = events[0] if len(events) == 1 else b"".join(events)
        if not self.has_started:
            return self._write_first(body)
        return self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _write_first(self, body: bytes) -> None:
        self.has_started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, summary: dict[str, Any] | None) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: GatewayError) -> None:
        await self.abort_with_event(encode_event(error.body))

    async def abort_with_event(self, event: bytes) -> None:
        """Send an error event without ending the body: SDKs take a clean end for a whole answer."""
        await self._send({"type": "http.response.body", "body": event, "more_body": True})


async def forward_response(
    send: Send, response: http.Response, extra_headers: Sequence[tuple[bytes, bytes]]
) -> None:
    headers = response_headers(response, extra_headers)
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for data in response.stream:  # type: ignore[union-attr]
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
