"""The format of ``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from adjourn.policies.session.orders import InsertedText
from adjourn.server.api.endpoint import NO_EXTRAS, Fields, OpenAIEndpoint, PolicyExtras
from adjourn.server.api.request import ParsedRequest
from adjourn.server.stream.chunk import (
    Choice,
    Chunk,
    build_reasoning_chunk,
    decode_chunk,
    encode_event,
    has_only_token_ids,
    has_value,
    hide_ids,
    top_logprobs,
    trim_logprobs,
    trim_to_reasoning,
    without_reasoning,
)
from adjourn.server.stream.reasoning_field import ReasoningField, make_reasoning_rewriter
from adjourn.server.stream.sse import event_data

__all__ = ["CHAT_PATH", "ChatEndpoint"]

CHAT_PATH = "/v1/chat/completions"
_LIMIT_NAMES = ("max_completion_tokens", "max_tokens")


class ChatEndpoint(OpenAIEndpoint):
    """The chat endpoint in vLLM's format. ``reasoning_field``: where the client reads reasoning."""

    path = CHAT_PATH
    extra_fields = dict.fromkeys(("return_token_ids", "include_reasoning"), Raw(b"true"))

    def __init__(
        self,
        request: ParsedRequest,
        choice: int = 0,
        extras: PolicyExtras = NO_EXTRAS,
        *,
        separate_answer: bool = False,
        reasoning_field: ReasoningField = "upstream",
    ) -> None:
        super().__init__(request, choice, extras, separate_answer)
        self._hide_reasoning = not request.include_reasoning
        self._requested_logprobs = _parse_requested_logprobs(request.fields)
        self._rewrite_reasoning = make_reasoning_rewriter(reasoning_field)
        edits_more = extras.logprobs or self._hide_reasoning or self._rewrite_reasoning is not None
        self._hides_only_ids = self._hide_ids and not edits_more

    def _logprobs_fields(self, count: int) -> Fields:
        count = max(count, self._requested_logprobs or 0)
        return {"logprobs": Raw(b"true"), "top_logprobs": Raw(b"%d" % count)}

    @staticmethod
    def prompt_fields(prompt: Sequence[int]) -> Fields:
        return {"kv_transfer_params": Raw(msgspec.json.encode({"prompt_token_ids": prompt}))}

    @property
    def _limit_names(self) -> Sequence[str]:
        return [name for name in _LIMIT_NAMES if name in self._fields] or _LIMIT_NAMES[:1]

    decode = staticmethod(decode_chunk)

    def has_answer(self, choice: Choice) -> bool:
        return bool(choice.delta.content) or has_value(choice.delta.tool_calls)

    def logprobs_of(self, choice: Choice) -> Sequence[Sequence[float]]:
        try:
            logprobs = top_logprobs(choice.logprobs)
        except msgspec.MsgspecError:
            return ()
        return logprobs if len(logprobs) == len(choice.token_ids or ()) else ()

    def render_inserted_text(self, first_chunk: Chunk, inserted: InsertedText) -> bytes:
        return encode_event(
            build_reasoning_chunk(first_chunk, self._model, inserted.text, inserted.ids)
        )

    def render_event(self, event: bytes, chunk: Chunk) -> bytes | None:
        choice = chunk.choices[0] if chunk.choices else None
        if (
            self._hides_only_ids
            and choice is not None
            and choice.delta.reasoning
            and choice.token_ids
            and chunk.prompt_token_ids is None
        ):
            return hide_ids(event)  # fast path: nearly all events of a trace
        if self._extras.logprobs and choice is not None and has_value(choice.logprobs):
            event = trim_logprobs(event, choice, self._requested_logprobs)
        if self._hide_ids:
            if choice is not None and choice.token_ids is not None:
                if has_only_token_ids(event, choice):
                    return None
                event = hide_ids(event)
            if chunk.prompt_token_ids is not None:
                event = hide_ids(event, b'"prompt_token_ids":[')
        if self._hide_reasoning and choice is not None:
            shown = without_reasoning(event_data(event) or b"")
            return None if shown is None else encode_event(shown)
        if self._rewrite_reasoning is not None and choice is not None:
            return self._rewrite_reasoning(event, choice)
        return event

    def trim_to_trace(self, event: bytes, keep_ids: int) -> bytes | None:
        return trim_to_reasoning(event, keep_ids)

    def prepend_closing(self, event: bytes, choice: Choice, closing: Sequence[int]) -> bytes:
        """Only a client that requested token ids gets the closing sequence, as ids."""
        if self._hide_ids:
            return event
        chunk = msgspec.json.decode(event_data(event) or b"{}")
        first = chunk["choices"][0]
        first["token_ids"] = [*closing, *(first.get("token_ids") or ())]
        return encode_event(msgspec.json.encode(chunk))


def _parse_requested_logprobs(fields: Fields) -> int | None:
    """Number of top log-probabilities per token that the client requested; None if it did not
    request log-probabilities."""
    if bytes(fields.get("logprobs", b"null")) != b"true":
        return None
    top = bytes(fields.get("top_logprobs", b"0"))
    return int(top) if top.isdigit() else 0
