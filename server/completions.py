"""``POST /v1/completions``, as the relay sees it: the trace is text among other text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from policies.dialect import Marks
from server.choose import Asked
from server.sse import data_of
from server.surface import Fields, OpenAI
from server.wire import Choice, Chunk, Delta, event_of, given, hide_ids

__all__ = ["ENDPOINT", "Completions", "opens_trace"]

ENDPOINT = "/v1/completions"
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


_decode = msgspec.json.Decoder(_TextChunk).decode


class Completions(OpenAI):
    """All text is thought to the session, which knows by its marker where the trace ends.

    A client sees the closing sequence of a cut as it sees the marker of a model that ends its
    trace itself.
    """

    path = ENDPOINT

    def __init__(
        self, request: Asked, choice: int = 0, *, marks: Marks, apart: bool = False
    ) -> None:
        super().__init__(request, choice, apart)
        self._marks = marks
        self._told = 0  # characters, for the offsets of what a second call brings
        self._closing = ""
        self._first_answer: Choice | None = None
        self._before_answer: int | None = None

    def answer(self, prompt: Sequence[int], left: int | None) -> Fields:
        limit = {} if left is None else {"max_tokens": left}
        return self.answering(prompt=prompt, **limit)

    def decode(self, data: bytes) -> Chunk:
        chunk = _decode(data)
        choices = [
            Choice(c.index, Delta(reasoning=c.text), c.finish_reason, c.logprobs, c.token_ids)
            for c in chunk.choices
        ]
        prompt = chunk.choices[0].prompt_token_ids if chunk.choices else None
        return Chunk(chunk.id, chunk.created, choices, chunk.usage, prompt, chunk.error)

    def answers(self, choice: Choice) -> bool:
        return False

    def shown(self, event: bytes, chunk: Chunk) -> bytes | None:
        if chunk.choices:
            event = self._counted(event, chunk.choices[0])
        if self._hide_ids:
            event = hide_ids(event)
            if chunk.prompt_token_ids is not None:
                event = hide_ids(event, b'"prompt_token_ids":[')
        return event

    def _counted(self, event: bytes, choice: Choice) -> bytes:
        """The event, its log-probabilities counting characters from the response's beginning."""
        if choice is self._first_answer:
            self._before_answer = self._told + len(self._closing)
        if self._before_answer is None:
            self._told += len(choice.delta.thought)
        elif given(choice.logprobs):
            chunk = msgspec.json.decode(data_of(event) or b"{}")
            logprobs = chunk["choices"][0]["logprobs"]
            logprobs["text_offset"] = [at + self._before_answer for at in logprobs["text_offset"]]
            return event_of(msgspec.json.encode(chunk))
        return event

    def edge(self, event: bytes, kept: int) -> bytes | None:
        """Up to the marker, if the marker is among what is kept."""
        chunk = msgspec.json.decode(data_of(event) or b"{}")
        choice, end = chunk["choices"][0], self._marks.dialect.end
        text, found, _ = choice["text"].partition(end)
        choice |= {"text": text + found, "finish_reason": None, "stop_reason": None}
        choice["token_ids"] = (choice.get("token_ids") or [])[:kept]
        if logprobs := choice.get("logprobs"):
            choice["logprobs"] = {key: value[:kept] for key, value in logprobs.items()}
        chunk.pop("system_fingerprint", None)
        return event_of(msgspec.json.encode(chunk))

    def closed(self, event: bytes, choice: Choice, closing: Sequence[int]) -> bytes:
        """With the closing sequence before the text, and its ids before the ids."""
        marks = self._marks
        if closing:
            text = marks.dialect.closing
            spared = tuple(closing) == marks.closing_on_newline != marks.closing
            opened = marks.dialect.start if closing[0] == marks.start else ""
            self._closing = opened + (text.removeprefix("\n") if spared else text)
            chunk = msgspec.json.decode(data_of(event) or b"{}")
            told = chunk["choices"][0]
            told["text"] = self._closing + told["text"]
            told["token_ids"] = [*closing, *(told.get("token_ids") or ())]
            event = event_of(msgspec.json.encode(chunk))
        self._first_answer = choice
        return event


def opens_trace(prompt: Any, marks: Marks) -> bool:
    """Whether a raw prompt, a text or ids, ends within a trace; a chat's (None) may always."""
    if isinstance(prompt, str):
        dialect = marks.dialect
        return prompt.rfind(dialect.start) > prompt.rfind(dialect.end)
    if prompt is None:
        return True
    last = next((token for token in reversed(prompt) if token in (marks.start, marks.end)), None)
    return last == marks.start
