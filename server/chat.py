"""``POST /v1/chat/completions``, as the relay sees it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from policies.orders import Said
from server.choose import Asked
from server.spelling import Spelling, speller
from server.sse import data_of
from server.surface import NOTHING, Fields, OpenAI, Wanted
from server.wire import (
    Choice,
    Chunk,
    decode_chunk,
    event_of,
    given,
    hide_ids,
    is_padding,
    most_probable,
    spoken,
    thought_of,
    with_logprobs,
    without_reasoning,
)

__all__ = ["ENDPOINT", "Chat"]

ENDPOINT = "/v1/chat/completions"
_LIMITS = ("max_completion_tokens", "max_tokens")


class Chat(OpenAI):
    """As vLLM speaks it. ``spelling``: how the client reads reasoning."""

    path = ENDPOINT
    asking = dict.fromkeys(("return_token_ids", "include_reasoning"), Raw(b"true"))

    def __init__(
        self,
        request: Asked,
        choice: int = 0,
        wanted: Wanted = NOTHING,
        *,
        apart: bool = False,
        spelling: Spelling = "upstream",
    ) -> None:
        super().__init__(request, choice, wanted, apart)
        self._hide_reasoning = not request.include_reasoning
        self._asked = _asked_logprobs(request.fields)
        self._spell = speller(spelling)
        told_whole = wanted.logprobs or self._hide_reasoning or self._spell is not None
        self._only_ids = self._hide_ids and not told_whole

    def _with_logprobs(self, number: int) -> Fields:
        number = max(number, self._asked or 0)
        return {"logprobs": Raw(b"true"), "top_logprobs": Raw(b"%d" % number)}

    @staticmethod
    def resuming(prompt: Sequence[int]) -> Fields:
        return {"kv_transfer_params": Raw(msgspec.json.encode({"prompt_token_ids": prompt}))}

    @property
    def _limits(self) -> Sequence[str]:
        return [name for name in _LIMITS if name in self._fields] or _LIMITS[:1]

    decode = staticmethod(decode_chunk)

    def answers(self, choice: Choice) -> bool:
        return bool(choice.delta.content) or given(choice.delta.tool_calls)

    def told(self, choice: Choice) -> Sequence[Sequence[float]]:
        try:
            told = most_probable(choice.logprobs)
        except msgspec.MsgspecError:
            return ()
        return told if len(told) == len(choice.token_ids or ()) else ()

    def said(self, first: Chunk, said: Said) -> bytes:
        return event_of(spoken(first, self._model, said.text, said.ids))

    def shown(self, event: bytes, chunk: Chunk) -> bytes | None:
        choice = chunk.choices[0] if chunk.choices else None
        if (
            self._only_ids
            and choice is not None
            and choice.delta.reasoning
            and choice.token_ids
            and chunk.prompt_token_ids is None
        ):
            return hide_ids(event)  # nearly always
        if self._wanted.logprobs and choice is not None and given(choice.logprobs):
            event = with_logprobs(event, choice, self._asked)
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


def _asked_logprobs(fields: Fields) -> int | None:
    """How many log-probabilities a token the client itself asked for; None for none at all."""
    if bytes(fields.get("logprobs", b"null")) != b"true":
        return None
    top = bytes(fields.get("top_logprobs", b"0"))
    return int(top) if top.isdigit() else 0
