"""``POST /v1/chat/completions``, as the relay sees it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from server.choose import ChatRequest
from server.sse import data_of
from server.surface import Fields
from server.wire import (
    Choice,
    Chunk,
    decode_chunk,
    event_of,
    hide_ids,
    is_padding,
    without_reasoning,
)

__all__ = ["ENDPOINT", "Chat"]

ENDPOINT = "/v1/chat/completions"
_STICKY = ("cache_salt", "priority")


class Chat:
    """One choice of a chat response: the ``choice``-th of the client's ``n``."""

    path = ENDPOINT

    def __init__(self, request: ChatRequest, choice: int = 0) -> None:
        self._request = request
        self._hide_ids = not request.return_token_ids
        self._hide_reasoning = not request.include_reasoning
        self._note_on_usage = request.include_usage or not request.stream
        self.fields = self._main(choice)
        self.decode = decode_chunk

    def _main(self, choice: int) -> Fields:
        fields = dict(self._request.fields)
        fields["stream"] = fields["return_token_ids"] = fields["include_reasoning"] = Raw(b"true")
        if not self._request.stream:
            fields["stream_options"] = Raw(b'{"include_usage":true}')
        fields.pop("n", None)
        if choice and self._request.seed is not None:
            # What the engine gives the choices of one request: each the next seed.
            fields["seed"] = Raw(b"%d" % (self._request.seed + choice))
        return fields

    @property
    def sticky(self) -> Fields:
        return {key: value for key, value in self.fields.items() if key in _STICKY}

    def answer(self, prompt: Sequence[int], spent: int) -> Fields | None:
        fields = dict(self.fields)
        fields["kv_transfer_params"] = Raw(msgspec.json.encode({"prompt_token_ids": prompt}))
        if self._request.limit is not None:
            left = self._request.limit - spent
            if left < 1:
                return None
            for name in ("max_completion_tokens", "max_tokens"):
                if name in fields:
                    fields[name] = Raw(b"%d" % left)
        return fields

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
        return event

    def closed(self, event: bytes, closing: Sequence[int]) -> bytes:
        """A client that asked for ids gets those of the closing sequence too."""
        if self._hide_ids:
            return event
        chunk = msgspec.json.decode(data_of(event) or b"{}")
        choice = chunk["choices"][0]
        choice["token_ids"] = [*closing, *(choice.get("token_ids") or ())]
        return event_of(msgspec.json.encode(chunk))

    def is_last(self, chunk: Chunk, choice: Choice | None) -> bool:
        if self._note_on_usage:
            return choice is None and chunk.usage is not None
        return choice is not None and choice.finish_reason is not None
