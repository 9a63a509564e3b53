"""Where a translated response goes: into its API's events, or into its document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
from starlette.types import Send

from server.apis.translation import Translation
from server.errors import GatewayError
from server.sinks import Assembler, StreamSink

__all__ = ["RetoldDocument", "RetoldStream"]

Again = Callable[[], Awaitable[httpx.Response]]
"""Asks the engine's own endpoint for the same, untranslated."""


class RetoldStream(StreamSink):
    """The client streams. What the engine refuses it refuses in its own words."""

    def __init__(
        self,
        send: Send,
        extra: Sequence[tuple[bytes, bytes]],
        translation: Translation,
        again: Again,
    ) -> None:
        super().__init__(send, extra)
        self._translation = translation
        self._again = again

    async def hand_through(self, response: httpx.Response) -> None:
        await _in_its_words(super().hand_through, self._again)

    async def write(self, events: list[bytes]) -> None:
        tell = self._translation.tell
        told = [one for event in events for one in tell(event)]
        if told:
            await super().write(told)

    async def fail(self, error: GatewayError) -> None:
        await self.break_off(self._translation.broken_off(error))


class RetoldDocument(Assembler):
    """The client wants one document."""

    def __init__(
        self,
        send: Send,
        extra: Sequence[tuple[bytes, bytes]],
        skeleton: Mapping[str, Any],
        silence: str | None,
        translation: Translation,
        again: Again,
    ) -> None:
        super().__init__(send, extra, skeleton, silence)
        self._translation = translation
        self._again = again

    async def hand_through(self, response: httpx.Response) -> None:
        await _in_its_words(super().hand_through, self._again)

    def document(self) -> dict[str, Any]:
        return self._translation.document(super().document())

    def refusal(self, error: bytes) -> bytes:
        return self._translation.refusal(error)


async def _in_its_words(
    hand_through: Callable[[httpx.Response], Awaitable[None]], again: Again
) -> None:
    response = await again()
    try:
        await hand_through(response)
    finally:
        await response.aclose()
