"""A stream that the engine goes on with from ids that were given to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Self

import httpx

from server.sse import EventSplitter, data_of
from server.wire import Chunk, Renamer

__all__ = ["Continuation"]


class Continuation:
    """``begun`` makes one from the engine's response. ``prompt`` is what it goes on from;
    ``events`` came with its first chunk, the rest comes from ``reads`` through ``splitter``;
    ``rename`` makes an event of it one of the response that it is a part of."""

    def __init__(self, response: httpx.Response, prompt: list[int]) -> None:
        self.response = response
        self.prompt = prompt
        self.reads: AsyncIterator[bytes] = response.stream.__aiter__()  # type: ignore[union-attr]
        self.splitter = EventSplitter()
        self.events: list[bytes] = []
        self.rename: Callable[[bytes], bytes] = bytes

    @classmethod
    async def begun(
        cls,
        response: httpx.Response,
        prompt: list[int],
        decode: Callable[[bytes], Chunk],
        first: Chunk,
    ) -> Self | None:
        """Read up to the first chunk, which tells whether the engine took our ids; None where it
        did not. ``first`` is the main stream's: its id and time are this one's too.

        Raises msgspec.MsgspecError where the first chunk is none.
        """
        if response.status_code != 200:
            return None
        made = cls(response, prompt)
        async for data in made.reads:
            made.events = made.splitter.feed(data)
            for index, event in enumerate(made.events):
                content = data_of(event)
                if content is None or content == b"[DONE]":
                    continue
                chunk = decode(content)
                if chunk.prompt_token_ids != prompt:
                    return None
                made.rename = Renamer(first, chunk)
                # A chunk without tokens is the role, which the client has.
                del made.events[: index + (not any(c.token_ids for c in chunk.choices))]
                return made
        return None

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """Events as they come, those of one read together. Raises what reading raises."""
        yield self.events
        async for data in self.reads:
            yield self.splitter.feed(data)
        if self.splitter.rest.strip():
            yield [self.splitter.rest]
