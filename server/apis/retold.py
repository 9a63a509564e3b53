"""Where a translated response goes: into its API's events, or into its document."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
from starlette.types import Send

from server.apis.translation import Translation
from server.engine import Engine
from server.errors import GatewayError
from server.sinks import Assembler, StreamSink

__all__ = ["Original", "RetoldDocument", "RetoldStream"]

Headers = Sequence[tuple[bytes, bytes]]


class Original:
    """A request as it came, for the engine's own endpoint: what a chat is refused is refused in
    that API's words, or not at all. ``status`` is what that endpoint answered; 0: not asked."""

    def __init__(self, engine: Engine, path: str, headers: Headers, body: bytes) -> None:
        self.status = 0
        self._engine = engine
        self._call = (path, headers, body)

    @contextlib.asynccontextmanager
    async def answered(self) -> AsyncIterator[httpx.Response]:
        response = await self._engine.send("POST", *self._call)
        self.status = response.status_code
        try:
            yield response
        finally:
            await response.aclose()


class RetoldStream(StreamSink):
    """The client streams."""

    def __init__(
        self, send: Send, extra: Headers, translation: Translation, original: Original
    ) -> None:
        super().__init__(send, extra)
        self.finished = False
        self._translation = translation
        self._original = original

    async def hand_through(self, response: httpx.Response) -> None:
        async with self._original.answered() as own:
            self._extra = _of_original(self._extra, own.status_code)
            await super().hand_through(own)

    async def write(self, events: list[bytes]) -> None:
        tell = self._translation.tell
        told = [one for event in events for one in tell(event)]
        if told:
            await super().write(told)
            self.finished = self._translation.finished

    async def fail(self, error: GatewayError) -> None:
        await self.break_off(self._translation.broken_off(error))


class RetoldDocument(Assembler):
    """The client wants one document."""

    def __init__(
        self,
        send: Send,
        extra: Headers,
        skeleton: Mapping[str, Any],
        silence: str | None,
        translation: Translation,
        original: Original,
    ) -> None:
        super().__init__(send, extra, skeleton, silence)
        self._translation = translation
        self._original = original

    async def hand_through(self, response: httpx.Response) -> None:
        async with self._original.answered() as own:
            self._extra = _of_original(self._extra, own.status_code)
            await super().hand_through(own)

    def document(self) -> dict[str, Any]:
        return self._translation.document(super().document())

    def refusal(self, error: bytes) -> bytes:
        return self._translation.refusal(error)


def _of_original(extra: Headers, status: int) -> list[tuple[bytes, bytes]]:
    """The headers of a reply that no policy judged after all."""
    if status >= 400:
        return list(extra)
    kept = [header for header in extra if header[0] != b"x-adjourn-policy"]
    return [*kept, (b"x-adjourn-passed-through", b"translation-refused")]
