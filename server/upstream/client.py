"""The engine behind the gateway, reached over HTTP. What is asked of it is its adapter's affair."""

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
"""What reading from an engine may raise."""

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
# vLLM's server closes an idle connection after five seconds; we must be first.
_KEEPALIVE_EXPIRY = 3.0
# Bytes of a stream that wait here at most: what a slow client makes each stream cost.
_HIGH_WATER = 2**16


class BadReply(Exception):
    """The engine answered, but not with what was asked for."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model that the engine serves. ``marks`` is None where no dialect fits it."""

    id: str
    max_model_len: int | None
    dialect: TokenizedDialect | None
    chat_skeleton: Mapping[str, Any] = field(default_factory=dict)
    """An unstreamed reply's keys, with null for what a stream does not bring."""
    completion_skeleton: Mapping[str, Any] = field(default_factory=dict)
    """The same of a raw completion."""


class EngineClient:
    """A client of one engine, at ``url`` if not at the upstream's. Raises UpstreamDown and
    UpstreamTimeout where it is not there."""

    def __init__(
        self,
        settings: Settings,
        transport: http.AsyncBaseTransport | None = None,
        url: HttpUrl | None = None,
    ) -> None:
        self.settings = settings
        self.url = str(url or settings.upstream).rstrip("/")
        # The transport alone: what httpx's client adds (cookies, redirects, hooks) is not ours to
        # add to somebody's request, and it costs more than the transport does.
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
        """Open a response; its body is not read. The caller closes it."""
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
                # Once more: nothing was begun. An engine that refuses connections is down, and
                # waiting for it is the client's choice.
                return await self._transport.handle_async_request(request)
        except http.ReadTimeout as error:
            raise UpstreamTimeout("the engine did not answer in time") from error
        except TRANSPORT_ERRORS as error:
            # Addresses are for the log, not for clients.
            log.warning("%s %s: %s", method, path.partition("?")[0], error)
            raise UpstreamDown("the engine cannot be reached") from error

    async def post(self, path: str, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """A whole reply. Raises BadReply unless the status is 200."""
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
        """Status and content, within the connect timeout: it is asked whether it is there."""
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
    """A client's headers less those of the connection, and, unless ``ours`` is False, less those
    that are for the gateway."""
    return [
        (name, value)
        for name, value in headers
        if name not in _HOP_BY_HOP
        and not (strip_gateway_headers and name.startswith(_GATEWAY_HEADER_PREFIX))
    ]
