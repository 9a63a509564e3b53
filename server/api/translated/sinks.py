"""Sinks that translate a chat response to another API: to a stream, or to one JSON document."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.types import Send

from adjourn.server.api.translated.translation import Translation
from adjourn.server.errors import GatewayError
from adjourn.server.stream.assembler import Assembler
from adjourn.server.stream.sinks import StreamSink
from adjourn.server.upstream import http
from adjourn.server.upstream.client import EngineClient

__all__ = ["OriginalRequest", "TranslatedDocument", "TranslatedStream"]

Headers = Sequence[tuple[bytes, bytes]]


class OriginalRequest:
    """The client's own request, sent to the engine's endpoint of that API if the engine refuses the
    chat request. So the client gets that API's error, or the engine's own response.

    State: ``status`` of that endpoint's reply; 0 while it was not sent.
    """

    def __init__(self, engine: EngineClient, path: str, headers: Headers, body: bytes) -> None:
        self.status = 0
        self._engine = engine
        self._request_parts = (path, headers, body)

    @contextlib.asynccontextmanager
    async def send(self) -> AsyncIterator[http.Response]:
        """The engine's response, which is closed at exit."""
        response = await self._engine.send("POST", *self._request_parts)
        self.status = response.status_code
        try:
            yield response
        finally:
            await response.aclose()


class TranslatedStream(StreamSink):
    """Writes the events of the client's API. ``finished``: the API's last event was written."""

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

    async def forward_response(self, response: http.Response) -> None:
        async with self._original.send() as own:
            self._extra_headers = _passed_through_headers(self._extra_headers, own.status_code)
            await super().forward_response(own)

    async def write(self, events: list[bytes]) -> None:
        translate = self._translation.translate_event
        translated = [new for event in events for new in translate(event)]
        if translated:
            await super().write(translated)
            self.finished = self._translation.finished

    async def fail(self, error: GatewayError) -> None:
        await self.abort_with_event(self._translation.render_gateway_error(error))


class TranslatedDocument(Assembler):
    """Writes the JSON document of the client's API."""

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

    async def forward_response(self, response: http.Response) -> None:
        async with self._original.send() as own:
            self._extra_headers = _passed_through_headers(self._extra_headers, own.status_code)
            await super().forward_response(own)

    def build_document(self) -> dict[str, Any]:
        return self._translation.build_document(super().build_document())

    def error_body(self, error: bytes) -> bytes:
        return self._translation.error_body(error)


def _passed_through_headers(extra: Headers, status: int) -> list[tuple[bytes, bytes]]:
    """The extra headers of a response that ran without the policy, or is an error."""
    if status >= 400:
        return list(extra)
    kept = [header for header in extra if header[0] != b"x-adjourn-policy"]
    return [*kept, (b"x-adjourn-passed-through", b"translation-refused")]
