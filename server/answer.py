"""The stream behind a cut: an answer that the engine draws from ids that were given to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Self

import httpx

from server.sse import EventSplitter, data_of
from server.wire import Chunk, Renamer

__all__ = ["Answer"]


class Answer:
    """Made by ``begun``. ``prompt`` is what it was drawn from, ``ids`` what it has brought."""

    def __init__(
        self, response: httpx.Response, reads: AsyncIterator[bytes], prompt: list[int]
    ) -> None:
        self.response = response
        self.prompt = prompt
        self.ids: list[int] = []
        self.closing_due = True
        self.escaped = False  # it opened a trace again, ``lost`` being its tokens until we knew
        self.lost = 0
        self.rename: Callable[[bytes], bytes] = bytes
        self._reads = reads
        self._splitter = EventSplitter()
        self._events: list[bytes] = []

    @classmethod
    async def begun(
        cls,
        response: httpx.Response,
        prompt: list[int],
        decode: Callable[[bytes], Chunk],
        first: Chunk,
    ) -> Self | None:
        """Read up to the first chunk, which tells whether the engine took our ids; None where it
        did not. ``first`` is the main stream's: its id and time become the answer's.

        Raises msgspec.MsgspecError where the first chunk is none.
        """
        if response.status_code != 200:
            return None
        answer = cls(response, response.stream.__aiter__(), prompt)  # type: ignore[union-attr]
        async for data in answer._reads:
            answer._events = answer._splitter.feed(data)
            for index, event in enumerate(answer._events):
                content = data_of(event)
                if content is None or content == b"[DONE]":
                    continue
                chunk = decode(content)
                if chunk.prompt_token_ids != prompt:
                    return None
                answer.rename = Renamer(first, chunk)
                # A chunk without tokens is the role, which the client has.
                del answer._events[: index + (not any(c.token_ids for c in chunk.choices))]
                return answer
        return None

    async def events(self) -> AsyncIterator[list[bytes]]:
        """Events as they come, those of one read together. Raises what reading raises."""
        yield self._events
        async for data in self._reads:
            yield self._splitter.feed(data)
        if self._splitter.rest.strip():
            yield [self._splitter.rest]
