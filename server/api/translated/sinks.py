"""Where a translated response goes: into its API's events, or into its document."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
from starlette.types import Send

from adjourn.server.api.translated.translation import Translation
from adjourn.server.errors import GatewayError
from adjourn.server.stream.sinks import Assembler, StreamSink
from adjourn.server.upstream.client import EngineClient

__all__ = ["OriginalRequest", "TranslatedDocument", "TranslatedStream"]

Headers = Sequence[tuple[bytes, bytes]]


class OriginalRequest:
    """A request as it came, for the engine's own endpoint: what a chat is refused is refused in
    that API's words, or not at all. ``status`` is what that endpoint answered; 0: not asked."""

    def __init__(self, engine: EngineClient, path: str, headers: Headers, body: bytes) -> None:
        self.status = 0
        self._engine = engine
        self._request_parts = (path, headers, body)

    @contextlib.asynccontextmanager
    async def send(self) -> AsyncIterator[httpx.Response]:
        response = await self._engine.send("POST", *self._request_parts)
        self.status = response.status_code
        try:
            yield response
        finally:
            await response.aclose()


class TranslatedStream(StreamSink):
    """The client streams."""

    def __init__(
        self,
        send: Send,
        extra_headers: Headers,
        translation: Translation,
        original: OriginalRequest,
    ) -> None:
        super().__init__(send, extra_headers)
        self.finished = False
        self._translation = translation
        self._original = original

    async def forward_response(self, response: httpx.Response) -> None:
        async with self._original.send() as own:
            self._extra_headers = _passed_through_headers(self._extra_headers, own.status_code)
            await super().forward_response(own)

    async def write(self, events: list[bytes]) -> None:
        tell = self._translation.translate_event
        told = [one for event in events for one in tell(event)]
        if told:
            await super().write(told)
            self.finished = self._translation.finished

    async def fail(self, error: GatewayError) -> None:
        await self.abort_with_event(self._translation.render_gateway_error(error))


class TranslatedDocument(Assembler):
    """The client wants one document."""

    def __init__(
        self,
        send: Send,
        extra_headers: Headers,
        skeleton: Mapping[str, Any],
        empty_content: str | None,
        translation: Translation,
        original: OriginalRequest,
    ) -> None:
        super().__init__(send, extra_headers, skeleton, empty_content)
        self._translation = translation
        self._original = original

    async def forward_response(self, response: httpx.Response) -> None:
        async with self._original.send() as own:
            self._extra_headers = _passed_through_headers(self._extra_headers, own.status_code)
            await super().forward_response(own)

    def build_document(self) -> dict[str, Any]:
        return self._translation.build_document(super().build_document())

    def error_body(self, error: bytes) -> bytes:
        return self._translation.error_body(error)


def _passed_through_headers(extra: Headers, status: int) -> list[tuple[bytes, bytes]]:
    """The headers of a reply that no policy judged after all."""
    if status >= 400:
        return list(extra)
    kept = [header for header in extra if header[0] != b"x-adjourn-policy"]
    return [*kept, (b"x-adjourn-passed-through", b"translation-refused")]
