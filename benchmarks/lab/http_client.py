"""HTTP to an engine, over the gateway's own transport."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from adjourn.server.stream.sse import EventSplitter, event_data
from adjourn.server.upstream import http
from adjourn.server.upstream.client import TRANSPORT_ERRORS, BadReply
from adjourn.server.upstream.transport import Transport

__all__ = ["ENGINE_ERRORS", "EngineError", "HttpClient"]

# vLLM's server closes an idle connection after five seconds; the client must close it first.
_KEEPALIVE_EXPIRY = 3.0
# A recorder reads each stream as fast as it comes, so this limit is never meant to be reached.
_HIGH_WATER_BYTES = 2**24
_CONNECT_TIMEOUT = 30.0
_MAX_ERROR_CHARS = 300


class EngineError(Exception):
    """The engine refused a request, or cannot do what recording needs."""


ENGINE_ERRORS = (
    EngineError,
    BadReply,
    TimeoutError,
    http.InvalidURL,
    msgspec.MsgspecError,
    *TRANSPORT_ERRORS,
)
"""The exceptions that a call to an engine may raise."""


class HttpClient:
    """Requests to one base URL, each with the same API key.

    Every call raises EngineError unless the status is 200, TimeoutError if the engine sends nothing
    for ``read_timeout`` seconds, and an error of TRANSPORT_ERRORS if the connection fails.
    """

    def __init__(self, url: str, api_key: str | None, read_timeout: float) -> None:
        self._url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout = {"connect": _CONNECT_TIMEOUT, "read": read_timeout}
        self._transport = Transport(_KEEPALIVE_EXPIRY, _HIGH_WATER_BYTES)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def get(self, path: str) -> bytes:
        """The content of the reply."""
        async with self._open("GET", path) as response:
            return await response.aread()

    async def post(self, path: str, body: bytes) -> bytes:
        """Posts JSON; the content of the reply."""
        async with self._open("POST", path, body) as response:
            return await response.aread()

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Posts JSON; the data of each server-sent event of the reply. Closing the generator closes
        the connection, which ends the engine's work."""
        splitter = EventSplitter()
        async with self._open("POST", path, body) as response:
            async for part in response.aiter_raw():
                for event in splitter.feed(part):
                    if (data := event_data(event)) is not None:
                        yield data

    @contextlib.asynccontextmanager
    async def _open(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[http.Response]:
        request = http.Request(
            method,
            self._url + path,
            headers=self._headers,
            content=body,
            extensions={"timeout": self._timeout},
        )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")[:_MAX_ERROR_CHARS]
                    raise EngineError(f"{path} answered {response.status_code}: {text}")
                yield response
            finally:
                await response.aclose()
        except http.TimeoutException as error:
            raise TimeoutError(str(error)) from error
