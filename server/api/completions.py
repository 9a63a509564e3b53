"""The format of ``POST /v1/completions``: reasoning trace and answer are one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from adjourn.policies.session.orders import InsertedText
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.policies.text.markers import MarkerKind
from adjourn.server.api.endpoint import NO_EXTRAS, Fields, OpenAIEndpoint, PolicyExtras
from adjourn.server.api.request import ParsedRequest
from adjourn.server.stream.chunk import (
    Choice,
    Chunk,
    Delta,
    encode_event,
    has_value,
    hide_ids,
    sort_logprobs,
    trim_logprobs,
)
from adjourn.server.stream.sse import event_data

__all__ = ["COMPLETIONS_PATH", "CompletionsEndpoint", "can_separate_stops"]

COMPLETIONS_PATH = "/v1/completions"
_ABSENT = Raw()


class _TextChoice(msgspec.Struct):
    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    logprobs: Raw = _ABSENT
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _TextChunk(msgspec.Struct):
    id: str = ""
    created: int = 0
    choices: list[_TextChoice] = []
    usage: dict[str, object] | None = None
    error: Raw = _ABSENT


class _TextLogprobs(msgspec.Struct):
    top_logprobs: list[dict[str, float] | None] = []


_decode = msgspec.json.Decoder(_TextChunk).decode
_decode_logprobs = msgspec.json.Decoder(_TextLogprobs).decode


class CompletionsEndpoint(OpenAIEndpoint):
    """The raw completions endpoint in vLLM's format.

    All text is passed to the session as reasoning; the session finds the end of the trace by its
    marker. The client sees the closing sequence of a cut, as it would see the end marker that the
    model writes itself.

    State, changed by ``render_event`` and ``prepend_closing``: ``_chars_sent``, characters of the
    trace sent so far; ``_closing_text`` and ``_first_answer_choice`` after a cut; and
    ``_answer_offset``, the characters before the answer once it has begun. The last corrects
    ``text_offset`` in the log-probabilities of the answer's own stream.
    """

    path = COMPLETIONS_PATH
    extra_fields: ClassVar[Fields] = {"return_token_ids": Raw(b"true")}

    def __init__(
        self,
        request: ParsedRequest,
        choice: int = 0,
        extras: PolicyExtras = NO_EXTRAS,
        *,
        dialect: TokenizedDialect,
        separate_answer: bool = False,
    ) -> None:
        super().__init__(request, choice, extras, separate_answer)
        self._dialect = dialect
        requested = bytes(request.fields.get("logprobs", b"null"))
        self._requested_logprobs = int(requested) if requested.isdigit() else None
        self._chars_sent = 0
        self._closing_text = ""
        self._first_answer_choice: Choice | None = None
        self._answer_offset: int | None = None

    def _logprobs_fields(self, count: int) -> Fields:
        return {"logprobs": Raw(b"%d" % max(count, self._requested_logprobs or 0))}

    @staticmethod
    def prompt_fields(prompt: Sequence[int]) -> Fields:
        return {"prompt": Raw(msgspec.json.encode(prompt))}

    @property
    def _limit_names(self) -> Sequence[str]:
        return ("max_tokens",)

    @staticmethod
    def decode(data: bytes, /) -> Chunk:
        chunk = _decode(data)
        choices = [
            Choice(c.index, Delta(reasoning=c.text), c.finish_reason, c.logprobs, c.token_ids)
            for c in chunk.choices
        ]
        prompt = chunk.choices[0].prompt_token_ids if chunk.choices else None
        return Chunk(chunk.id, chunk.created, choices, chunk.usage, prompt, chunk.error)

    def has_answer(self, choice: Choice) -> bool:
        return False

    def logprobs_of(self, choice: Choice) -> Sequence[Sequence[float]]:
        if not has_value(choice.logprobs):
            return ()
        try:
            per_token = _decode_logprobs(choice.logprobs).top_logprobs
        except msgspec.MsgspecError:
            return ()
        if len(per_token) != len(choice.token_ids or ()):
            return ()
        return [sort_logprobs((top or {}).values()) for top in per_token]

    def render_inserted_text(self, first_chunk: Chunk, inserted: InsertedText) -> bytes:
        choice = {"index": 0, "text": inserted.text, "logprobs": None, "finish_reason": None}
        choice |= {"stop_reason": None, "prompt_token_ids": None, "token_ids": inserted.ids}
        chunk = {"id": first_chunk.id, "object": "text_completion", "created": first_chunk.created}
        return encode_event(
            msgspec.json.encode({**chunk, "model": self._model, "choices": [choice]})
        )

    def render_event(self, event: bytes, chunk: Chunk) -> bytes | None:
        if chunk.choices:
            choice = chunk.choices[0]
            if self._extras.logprobs and has_value(choice.logprobs):
                event = trim_logprobs(event, choice, self._requested_logprobs, _trim_text_logprobs)
            event = self._shift_text_offsets(event, choice)
        if self._hide_ids:
            event = hide_ids(event)
            if chunk.prompt_token_ids is not None:
                event = hide_ids(event, b'"prompt_token_ids":[')
        return event

    def _shift_text_offsets(self, event: bytes, choice: Choice) -> bytes:
        """The event with ``text_offset`` counted from the start of the whole response."""
        if choice is self._first_answer_choice:
            self._answer_offset = self._chars_sent + len(self._closing_text)
        if self._answer_offset is None:
            self._chars_sent += len(choice.delta.reasoning_text)
        elif has_value(choice.logprobs):
            chunk = msgspec.json.decode(event_data(event) or b"{}")
            logprobs = chunk["choices"][0]["logprobs"]
            logprobs["text_offset"] = [at + self._answer_offset for at in logprobs["text_offset"]]
            return encode_event(msgspec.json.encode(chunk))
        return event

    def trim_to_trace(self, event: bytes, keep_ids: int) -> bytes | None:
        """The text up to the end marker, including the marker if it is there."""
        chunk = msgspec.json.decode(event_data(event) or b"{}")
        choice = chunk["choices"][0]
        text, marker = _split_at_marker(choice["text"], self._dialect.definition.end)
        choice |= {"text": text + marker, "finish_reason": None, "stop_reason": None}
        choice["token_ids"] = (choice.get("token_ids") or [])[:keep_ids]
        if logprobs := choice.get("logprobs"):
            choice["logprobs"] = {key: value[:keep_ids] for key, value in logprobs.items()}
        chunk.pop("system_fingerprint", None)
        return encode_event(msgspec.json.encode(chunk))

    def prepend_closing(self, event: bytes, choice: Choice, closing: Sequence[int]) -> bytes:
        """Put the closing sequence before the text, and its ids before the token ids."""
        if closing:
            self._closing_text = self._closing_to_text(tuple(closing))
            chunk = msgspec.json.decode(event_data(event) or b"{}")
            first = chunk["choices"][0]
            first["text"] = self._closing_text + first["text"]
            first["token_ids"] = [*closing, *(first.get("token_ids") or ())]
            event = encode_event(msgspec.json.encode(chunk))
        self._first_answer_choice = choice
        return event

    def _closing_to_text(self, ids: tuple[int, ...]) -> str:
        """The text of closing sequences and of the start marker of a reopened trace."""
        dialect, text = self._dialect, ""
        closing, start = dialect.definition.closing, dialect.definition.start[0]
        sequences = (
            (dialect.closing, closing),
            (dialect.closing_on_newline, closing.removeprefix("\n")),
            (dialect.start, start),
        )
        while ids:
            found = ((known, value) for known, value in sequences if ids[: len(known)] == known)
            known, value = next(found, (ids[:1], ""))
            ids, text = ids[len(known) :], text + value
        return text


def can_separate_stops(prompt: Any, dialect: TokenizedDialect) -> bool:
    """True if the client's stop strings can apply to the answer only.

    ``prompt`` is a raw prompt (a string or token ids), or None for a chat, where this is always
    possible. A raw prompt must end inside a reasoning trace, and the end marker must be a single
    token.
    """
    if prompt is None:
        return True
    if any(length > 1 for length in dialect.matcher.lengths_of(MarkerKind.END)):
        return False
    if isinstance(prompt, str):
        start, end = (
            max(map(prompt.rfind, markers))
            for markers in (dialect.definition.start, dialect.definition.end)
        )
        return start > end
    return dialect.matcher.last_kind(prompt) is MarkerKind.START


def _split_at_marker(text: str, markers: Sequence[str]) -> tuple[str, str]:
    """(the text before the first marker, that marker); the whole text and "" if there is none."""
    at, marker = min(((text.find(m), m) for m in markers if m in text), default=(len(text), ""))
    return text[:at], marker


def _trim_text_logprobs(logprobs: dict[str, Any], requested: int) -> None:
    """Keep the sampled token, which comes first, and the ``requested`` most probable tokens, which
    follow in order of probability."""
    for index, top in enumerate(logprobs.get("top_logprobs") or ()):
        if top:
            entries = list(top.items())
            likely = sorted(top.values(), reverse=True)[:requested]
            sampled_is_likely = bool(likely) and entries[0][1] >= likely[-1]
            logprobs["top_logprobs"][index] = dict(entries[: requested + (not sampled_is_likely)])
