"""A stream of the engine that continues given token ids."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Self

from adjourn.server.stream.chunk import Chunk, IdRewriter
from adjourn.server.stream.sse import EventSplitter, event_data
from adjourn.server.upstream import http

__all__ = ["Continuation"]


class Continuation:
    """An engine's response of which the first chunk may have been read already.

    ``prompt``: the token ids that it continues. ``first_events``: the events that came with its
    first chunk; ``byte_stream`` has the rest, to be read through ``splitter``. ``rewrite_id`` gives
    its events the id and the time of the response that it is a part of.
    """

    def __init__(self, response: http.Response, prompt: list[int]) -> None:
        self.response = response
        self.prompt = prompt
        self.byte_stream: AsyncIterator[bytes] = response.stream.__aiter__()  # type: ignore[union-attr]
        self.splitter = EventSplitter()
        self.first_events: list[bytes] = []
        self.rewrite_id: Callable[[bytes], bytes] = bytes

    @classmethod
    async def from_response(
        cls,
        response: http.Response,
        prompt: list[int],
        decode: Callable[[bytes], Chunk],
        main_chunk: Chunk,
    ) -> Self | None:
        """Read up to the first chunk, in which the engine echoes the prompt's ids.

        None if the engine refused, or echoes other ids than ``prompt``. ``main_chunk``: the first
        chunk of the main stream. Raises msgspec.MsgspecError if the first chunk cannot be read.
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
                # A chunk without tokens has the role only, which the client has already.
                del made.first_events[: index + (not any(c.token_ids for c in chunk.choices))]
                return made
        return None

    async def iter_event_batches(self) -> AsyncIterator[list[bytes]]:
        """The events, those of one read in one list. Raises the transport's errors."""
        yield self.first_events
        async for data in self.byte_stream:
            yield self.splitter.feed(data)
        if self.splitter.remainder.strip():
            yield [self.splitter.remainder]
