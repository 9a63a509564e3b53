"""A stream that the engine goes on with from ids that were given to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Self

import httpx

from adjourn.server.stream.chunk import Chunk, IdRewriter
from adjourn.server.stream.sse import EventSplitter, event_data

__all__ = ["Continuation"]


class Continuation:
    """``begun`` makes one from the engine's response. ``prompt`` is what it goes on from;
    ``events`` came with its first chunk, the rest comes from ``reads`` through ``splitter``;
    ``rename`` makes an event of it one of the response that it is a part of."""

    def __init__(self, response: httpx.Response, prompt: list[int]) -> None:
        self.response = response
        self.prompt = prompt
        self.byte_stream: AsyncIterator[bytes] = response.stream.__aiter__()  # type: ignore[union-attr]
        self.splitter = EventSplitter()
        self.first_events: list[bytes] = []
        self.rewrite_id: Callable[[bytes], bytes] = bytes

    @classmethod
    async def from_response(
        cls,
        response: httpx.Response,
        prompt: list[int],
        decode: Callable[[bytes], Chunk],
        main_chunk: Chunk,
    ) -> Self | None:
        """Read up to the first chunk, which tells whether the engine took our ids; None where it
        did not. ``first`` is the main stream's: its id and time are this one's too.

        Raises msgspec.MsgspecError where the first chunk is none.
        """
        if response.status_code != 200:
            return None
        made = cls(response, prompt)
        async for data in made.byte_stream:
            made.first_events = made.splitter.feed(data)
            for index, event in enumerate(made.first_events):
                content = event_data(event)
                if content is None or content == b"[DONE]":
                    continue
                chunk = decode(content)
                if chunk.prompt_token_ids != prompt:
                    return None
                made.rewrite_id = IdRewriter(main_chunk, chunk)
                # A chunk without tokens is the role, which the client has.
                del made.first_events[: index + (not any(c.token_ids for c in chunk.choices))]
                return made
        return None

    async def iter_event_batches(self) -> AsyncIterator[list[bytes]]:
        """Events as they come, those of one read together. Raises what reading raises."""
        yield self.first_events
        async for data in self.byte_stream:
            yield self.splitter.feed(data)
        if self.splitter.remainder.strip():
            yield [self.splitter.remainder]
