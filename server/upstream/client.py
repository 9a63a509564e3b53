"""The HTTP client of one engine. What it sends there is up to the engine's adapter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import HttpUrl

from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.server.config import Settings
from adjourn.server.errors import UpstreamDown, UpstreamTimeout
from adjourn.server.upstream import http
from adjourn.server.upstream.transport import Transport

__all__ = ["TRANSPORT_ERRORS", "BadReply", "EngineClient", "Model", "forwarded_headers"]

log = logging.getLogger("adjourn.engine")

TRANSPORT_ERRORS = (http.TransportError,)
"""The exceptions that reading a response may raise."""

_HOP_BY_HOP = {
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
_GATEWAY_HEADER_PREFIX = b"x-adjourn-"
# Seconds. vLLM's server closes an idle connection after five; the gateway must close it first.
_KEEPALIVE_EXPIRY = 3.0
# Bytes that are buffered for each stream whose client reads slowly.
_HIGH_WATER = 2**16


class BadReply(Exception):
    """The engine answered, but with another status or another content than was expected."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model that the engine serves. ``dialect`` is None if none fits its vocabulary."""

    id: str
    max_model_len: int | None
    dialect: TokenizedDialect | None
    chat_skeleton: Mapping[str, Any] = field(default_factory=dict)
    """The keys of an unstreamed chat response, with null where a stream has no value."""
    completion_skeleton: Mapping[str, Any] = field(default_factory=dict)
    """The same for a raw completion."""


class EngineClient:
    """Sends requests to the engine at ``url``, or at the setting ``upstream`` if that is None.

    Raises UpstreamDown if the engine cannot be reached, and UpstreamTimeout if it is silent for
    longer than the setting ``idle_timeout``.
    """

    def __init__(
        self,
        settings: Settings,
        transport: http.AsyncBaseTransport | None = None,
        url: HttpUrl | None = None,
    ) -> None:
        self.settings = settings
        self.url = str(url or settings.upstream).rstrip("/")
        # A transport instead of a whole client: cookies, redirects and hooks would change the
        # client's request, and they cost more than the transport itself.
        self._transport = transport or Transport(_KEEPALIVE_EXPIRY, _HIGH_WATER)
        self._timeout = {
            "connect": settings.connect_timeout,
            "read": settings.idle_timeout,
        }

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def send(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        content: Any = None,
    ) -> http.Response:
        """Send a request and return the response, whose body is not read yet. The caller closes
        it."""
        request = http.Request(
            method,
            self.url + path,
            headers=list(headers),
            content=content,
            extensions={"timeout": self._timeout},
        )
        try:
            try:
                return await self._transport.handle_async_request(request)
            except http.ConnectTimeout:
                # Try once more, since the engine has not received the request. A refused
                # connection is not tried again: whether to wait is the client's decision.
                return await self._transport.handle_async_request(request)
        except http.ReadTimeout as error:
            raise UpstreamTimeout("the engine did not answer in time") from error
        except TRANSPORT_ERRORS as error:
            # The error names the engine's address: log it, but do not send it to the client.
            log.warning("%s %s: %s", method, path.partition("?")[0], error)
            raise UpstreamDown("the engine cannot be reached") from error

    async def post(self, path: str, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The whole content of the response. Raises BadReply unless its status is 200."""
        response = await self.send("POST", path, headers, body)
        try:
            content = await response.aread()
        except TRANSPORT_ERRORS as error:
            raise UpstreamDown("the engine broke the connection") from error
        finally:
            await response.aclose()
        if response.status_code != 200:
            raise BadReply(f"{path} answered {response.status_code}")
        return content

    async def get(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, bytes]:
        """Status and content. The whole request may take ``connect_timeout`` seconds, because it
        checks whether the engine answers at all."""
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                response = await self.send("GET", path, headers)
                try:
                    return response.status_code, await response.aread()
                finally:
                    await response.aclose()
        except (TimeoutError, *TRANSPORT_ERRORS) as error:
            raise UpstreamDown(f"the engine did not answer {path}") from error


def forwarded_headers(
    headers: Sequence[tuple[bytes, bytes]], *, strip_gateway_headers: bool = True
) -> list[tuple[bytes, bytes]]:
    """The headers of a message that are sent on: all except those of the connection and, with
    ``strip_gateway_headers``, those that address the gateway (``x-adjourn-…``)."""
    return [
        (name, value)
        for name, value in headers
        if name not in _HOP_BY_HOP
        and not (strip_gateway_headers and name.startswith(_GATEWAY_HEADER_PREFIX))
    ]
