"""``POST /v1/completions``, as the relay sees it: the trace is text among other text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from policies.dialect import Marks
from policies.markers import Mark
from policies.orders import Said
from server.choose import Asked
from server.sse import data_of
from server.surface import NOTHING, Fields, OpenAI, Wanted
from server.wire import (
    Choice,
    Chunk,
    Delta,
    event_of,
    given,
    hide_ids,
    ranked,
    with_logprobs,
)

__all__ = ["ENDPOINT", "Completions", "stops_apart"]

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


class _Told(msgspec.Struct):
    top_logprobs: list[dict[str, float] | None] = []


_decode = msgspec.json.Decoder(_TextChunk).decode
_decode_logprobs = msgspec.json.Decoder(_Told).decode


class Completions(OpenAI):
    """All text is thought to the session, which knows by its marker where the trace ends.

    A client sees the closing sequence of a cut as it sees the marker of a model that ends its
    trace itself.
    """

    path = ENDPOINT
    asking: ClassVar[Fields] = {"return_token_ids": Raw(b"true")}

    def __init__(
        self,
        request: Asked,
        choice: int = 0,
        wanted: Wanted = NOTHING,
        *,
        marks: Marks,
        apart: bool = False,
    ) -> None:
        super().__init__(request, choice, wanted, apart)
        self._marks = marks
        asked = bytes(request.fields.get("logprobs", b"null"))
        self._asked = int(asked) if asked.isdigit() else None
        self._told = 0  # characters, for the offsets of what a second call brings
        self._closing = ""
        self._first_answer: Choice | None = None
        self._before_answer: int | None = None

    def _with_logprobs(self, number: int) -> Fields:
        return {"logprobs": Raw(b"%d" % max(number, self._asked or 0))}

    @staticmethod
    def resuming(prompt: Sequence[int]) -> Fields:
        return {"prompt": Raw(msgspec.json.encode(prompt))}

    @property
    def _limits(self) -> Sequence[str]:
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

    def answers(self, choice: Choice) -> bool:
        return False

    def told(self, choice: Choice) -> Sequence[Sequence[float]]:
        if not given(choice.logprobs):
            return ()
        try:
            told = _decode_logprobs(choice.logprobs).top_logprobs
        except msgspec.MsgspecError:
            return ()
        if len(told) != len(choice.token_ids or ()):
            return ()
        return [ranked((one or {}).values()) for one in told]

    def said(self, first: Chunk, said: Said) -> bytes:
        choice = {"index": 0, "text": said.text, "logprobs": None, "finish_reason": None}
        choice |= {"stop_reason": None, "prompt_token_ids": None, "token_ids": said.ids}
        chunk = {"id": first.id, "object": "text_completion", "created": first.created}
        return event_of(msgspec.json.encode({**chunk, "model": self._model, "choices": [choice]}))

    def shown(self, event: bytes, chunk: Chunk) -> bytes | None:
        if chunk.choices:
            choice = chunk.choices[0]
            if self._wanted.logprobs and given(choice.logprobs):
                event = with_logprobs(event, choice, self._asked, _fewer)
            event = self._counted(event, choice)
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
        choice = chunk["choices"][0]
        text, found = _parted(choice["text"], self._marks.dialect.end)
        choice |= {"text": text + found, "finish_reason": None, "stop_reason": None}
        choice["token_ids"] = (choice.get("token_ids") or [])[:kept]
        if logprobs := choice.get("logprobs"):
            choice["logprobs"] = {key: value[:kept] for key, value in logprobs.items()}
        chunk.pop("system_fingerprint", None)
        return event_of(msgspec.json.encode(chunk))

    def closed(self, event: bytes, choice: Choice, closing: Sequence[int]) -> bytes:
        """With the closing sequence before the text, and its ids before the ids."""
        if closing:
            self._closing = self._spelled(tuple(closing))
            chunk = msgspec.json.decode(data_of(event) or b"{}")
            told = chunk["choices"][0]
            told["text"] = self._closing + told["text"]
            told["token_ids"] = [*closing, *(told.get("token_ids") or ())]
            event = event_of(msgspec.json.encode(chunk))
        self._first_answer = choice
        return event

    def _spelled(self, ids: tuple[int, ...]) -> str:
        """The text of closing sequences, and of the marker of a trace that was opened again."""
        marks, text = self._marks, ""
        whole, opened = marks.dialect.closing, marks.dialect.start[0]
        spellings = (
            (marks.closing, whole),
            (marks.closing_on_newline, whole.removeprefix("\n")),
            (marks.start, opened),
        )
        while ids:
            found = ((known, said) for known, said in spellings if ids[: len(known)] == known)
            known, said = next(found, (ids[:1], ""))
            ids, text = ids[len(known) :], text + said
        return text


def stops_apart(prompt: Any, marks: Marks) -> bool:
    """Whether stop strings can be kept from the trace: a raw prompt, a text or ids, must end within
    one, and its end be seen at a token. A chat's prompt (None) is no matter here."""
    if prompt is None:
        return True
    if any(length > 1 for length in marks.markers.lengths(Mark.END)):
        return False
    if isinstance(prompt, str):
        start, end = (
            max(map(prompt.rfind, texts)) for texts in (marks.dialect.start, marks.dialect.end)
        )
        return start > end
    return marks.markers.last(prompt) is Mark.START


def _parted(text: str, markers: Sequence[str]) -> tuple[str, str]:
    """What stands before the first of the markers, and that marker."""
    at, marker = min(((text.find(m), m) for m in markers if m in text), default=(len(text), ""))
    return text[:at], marker


def _fewer(logprobs: dict[str, Any], asked: int) -> None:
    """Leave the drawn token, which comes first, and as many of the most probable ones, which
    follow in their order."""
    for index, one in enumerate(logprobs.get("top_logprobs") or ()):
        if one:
            entries = list(one.items())
            likely = sorted(one.values(), reverse=True)[:asked]
            among = bool(likely) and entries[0][1] >= likely[-1]
            logprobs["top_logprobs"][index] = dict(entries[: asked + (not among)])
