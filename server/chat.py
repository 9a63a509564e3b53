"""``POST /v1/chat/completions``, as the relay sees it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from server.choose import Asked
from server.spelling import Spelling, speller
from server.sse import data_of
from server.surface import Fields, OpenAI
from server.wire import (
    Choice,
    Chunk,
    decode_chunk,
    event_of,
    given,
    hide_ids,
    is_padding,
    thought_of,
    without_reasoning,
)

__all__ = ["ENDPOINT", "Chat"]

ENDPOINT = "/v1/chat/completions"
_LIMITS = ("max_completion_tokens", "max_tokens")


class Chat(OpenAI):
    """``tool_calls``: ids that begin one. ``spelling``: how the client reads reasoning."""

    path = ENDPOINT

    def __init__(
        self,
        request: Asked,
        choice: int = 0,
        *,
        apart: bool = False,
        tool_calls: frozenset[int] = frozenset(),
        spelling: Spelling = "upstream",
    ) -> None:
        super().__init__(request, choice, apart, "include_reasoning")
        self.decode = decode_chunk
        self._hide_reasoning = not request.include_reasoning
        self._tool_calls = tool_calls if "tools" in request.fields else frozenset()
        self._spell = speller(spelling)

    def answer(self, prompt: Sequence[int], left: int | None) -> Fields:
        fields = self.answering(kv_transfer_params={"prompt_token_ids": prompt})
        if left is not None:
            names = [name for name in _LIMITS if name in fields] or _LIMITS[:1]
            fields |= dict.fromkeys(names, Raw(b"%d" % left))
        return fields

    def answers(self, choice: Choice) -> bool:
        delta = choice.delta
        if delta.content or given(delta.tool_calls):
            return True
        # Before its name is whole, a tool call is nothing but a token.
        return bool(self._tool_calls) and not self._tool_calls.isdisjoint(choice.token_ids or ())

    def shown(self, event: bytes, chunk: Chunk) -> bytes | None:
        choice = chunk.choices[0] if chunk.choices else None
        if self._hide_ids:
            if choice is not None and choice.token_ids is not None:
                if is_padding(event, choice):
                    return None
                event = hide_ids(event)
            if chunk.prompt_token_ids is not None:
                event = hide_ids(event, b'"prompt_token_ids":[')
        if self._hide_reasoning and choice is not None:
            shown = without_reasoning(data_of(event) or b"")
            return None if shown is None else event_of(shown)
        if self._spell is not None and choice is not None:
            return self._spell(event, choice)
        return event

    def edge(self, event: bytes, kept: int) -> bytes | None:
        return thought_of(event, kept)

    def closed(self, event: bytes, choice: Choice, closing: Sequence[int]) -> bytes:
        """A client that asked for ids gets those of the closing sequence too."""
        if self._hide_ids:
            return event
        chunk = msgspec.json.decode(data_of(event) or b"{}")
        told = chunk["choices"][0]
        told["token_ids"] = [*closing, *(told.get("token_ids") or ())]
        return event_of(msgspec.json.encode(chunk))
