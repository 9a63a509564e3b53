"""An engine whose responses are computed by a function, in place of the network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

Respond = Callable[[str, dict[str, Any]], Any]

VERSIONS = {
    "/version": {"version": "0.32.0"},
    "/server_info": {"version": "0.5.23", "model_path": "m"},
    "/get_server_info": {"version": "0.4.0"},
    "/props": {"build_info": "b10434-7e4c0a9", "total_slots": 4},
}
"""Where each kind of engine reports its version."""


class EventStream(httpx.AsyncByteStream):
    """One event per read, with a short pause before each."""

    def __init__(self, chunks: list[dict[str, Any]]) -> None:
        self._events = [b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in (*self._events, b"data: [DONE]\n\n"):
            await asyncio.sleep(0.001)
            yield event


class ScriptedTransport(httpx.AsyncBaseTransport):
    """``respond`` gets a path and a body. It returns a document, a list of chunks or a status.

    State: ``requests`` holds path and body of each request.
    """

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.requests: list[tuple[str, dict[str, Any]]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        body = json.loads(content) if content else {}
        self.requests.append((request.url.path, body))
        response = self.respond(request.url.path, body)
        if isinstance(response, int):
            return httpx.Response(response, stream=httpx.ByteStream(b"{}"))
        if isinstance(response, list):
            return httpx.Response(200, stream=EventStream(response))
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(response).encode()))
