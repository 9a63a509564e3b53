"""The few fields of a chat stream that the gateway reads, and the few bytes that it edits.

A chunk is decoded into these types and forwarded as the bytes it came in: what is not known here
is not lost. A quote inside a JSON string is always escaped, so ``"token_ids":[`` in the bytes of a
chunk is a key and never a piece of somebody's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from adjourn.server.stream.sse import event_data

__all__ = [
    "Chunk",
    "Delta",
    "Fields",
    "IdRewriter",
    "build_reasoning_chunk",
    "decode_chunk",
    "encode_event",
    "has_only_token_ids",
    "has_value",
    "hide_ids",
    "sort_logprobs",
    "top_logprobs",
    "trim_logprobs",
    "trim_to_reasoning",
    "with_choice_index",
    "with_key",
    "with_logit_bias",
    "without_reasoning",
]


Fields = dict[str, msgspec.Raw]
"""A request's top-level values, as the bytes they were written in."""
_ABSENT = msgspec.Raw()
LogprobsTrimmer = Callable[[dict[str, Any], int], None]
_EMPTY = (b"", b"null", b"[]")


def has_value(value: msgspec.Raw) -> bool:
    """Whether a value that is not decoded holds anything."""
    return value is not _ABSENT and bytes(value) not in _EMPTY


class Delta(msgspec.Struct, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw = _ABSENT

    @property
    def reasoning_text(self) -> str:
        return self.reasoning or self.reasoning_content or ""


class Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None
    logprobs: msgspec.Raw = _ABSENT
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct, gc=False):
    id: str = ""
    created: int = 0
    choices: list[Choice] = []
    usage: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    error: msgspec.Raw = _ABSENT


class _TopLogprob(msgspec.Struct):
    logprob: float


class _TokenLogprobs(msgspec.Struct):
    top_logprobs: list[_TopLogprob] = []


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprobs] | None = None


decode_chunk: Callable[[bytes], Chunk] = msgspec.json.Decoder(Chunk).decode
"""Raises msgspec.MsgspecError where the bytes are no chunk."""
_decode_logprobs = msgspec.json.Decoder(_Logprobs).decode
_MISSING_LOGPROB = -9999.0


def top_logprobs(logprobs: msgspec.Raw) -> list[list[float]]:
    """For each token of a chunk the log-probabilities that were told, highest first.

    Raises msgspec.MsgspecError where they cannot be read.
    """
    if not has_value(logprobs):
        return []
    content = _decode_logprobs(logprobs).content or []
    return [sort_logprobs(top.logprob for top in one.top_logprobs) for one in content]


def sort_logprobs(logprobs: Iterable[float]) -> list[float]:
    """Log-probabilities of one token, highest first; none where vLLM told that of the token itself
    alone, as it does while it scores chosen tokens for somebody else."""
    found = sorted(logprobs, reverse=True)
    return [] if len(found) > 1 and found[1] <= _MISSING_LOGPROB else found


def trim_logprobs(
    event: bytes, choice: Choice, requested: int | None, trim: LogprobsTrimmer | None = None
) -> bytes:
    """The event with the log-probabilities that the client asked for: ``asked`` of the most
    probable tokens, None for nothing at all. The choice is left in step with it. ``fewer`` takes
    the others out, where they have another shape than a chat's."""
    shown = b"null"
    if requested is not None:
        logprobs = msgspec.json.decode(choice.logprobs)
        (trim or _trim_chat_logprobs)(logprobs, requested)
        shown = msgspec.json.encode(logprobs)
    key, told = b'"logprobs":', bytes(choice.logprobs)
    choice.logprobs = msgspec.Raw(shown)
    return event.replace(key + told, key + shown, 1)


def _trim_chat_logprobs(logprobs: dict[str, Any], requested: int) -> None:
    for one in logprobs.get("content") or ():
        del one["top_logprobs"][requested:]


def encode_event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def has_only_token_ids(event: bytes, choice: Choice) -> bool:
    """A chunk that the engine sends only because token ids were asked for: it holds no more."""
    return (
        choice.delta.reasoning is None
        and choice.finish_reason is None
        and not has_value(choice.logprobs)
        and b'"delta":{}' in event
    )


def hide_ids(event: bytes, key: bytes = b'"token_ids":[') -> bytes:
    """The event as it would have come had no token ids been asked for."""
    begin = event.rfind(key)
    if begin < 0:
        return event
    begin += len(key) - 1
    return event[:begin] + b"null" + event[event.index(b"]", begin) + 1 :]


def build_reasoning_chunk(
    chunk: Chunk, model: str, text: str, token_ids: Sequence[int] | None
) -> bytes:
    """The data of a chunk of ``chunk``'s stream that brings ``text`` as reasoning."""
    delta = {"reasoning": text}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return msgspec.json.encode(
        {
            "id": chunk.id,
            "object": "chat.completion.chunk",
            "created": chunk.created,
            "model": model,
            "choices": [{**choice, "token_ids": token_ids}],
        }
    )


def with_logit_bias(logit_bias: msgspec.Raw, token: int, bias: float) -> msgspec.Raw:
    """A client's ``logit_bias`` with ``bias`` added to a token's; what is no such thing stays, for
    the engine to refuse."""
    try:
        biases = msgspec.json.decode(logit_bias, type=dict[str, float] | None) or {}
    except msgspec.MsgspecError:
        return logit_bias
    biases[str(token)] = min(biases.get(str(token), 0.0) + bias, 100.0)
    return msgspec.Raw(msgspec.json.encode(biases))


def with_choice_index(event: bytes, index: int) -> bytes:
    """The event of a response's first choice as that of its ``index``-th."""
    if index == 0:
        return event
    first = b'"choices":[{"index":'
    if first + b"0" in event:
        return event.replace(first + b"0", first + b"%d" % index, 1)
    # llama.cpp begins a choice with another key, and others may.
    chunk = msgspec.json.decode(event_data(event) or b"{}")
    for choice in chunk.get("choices", ()):
        choice["index"] = index
    return encode_event(msgspec.json.encode(chunk))


def with_key(data: bytes, key: str, value: Any) -> bytes:
    """A JSON object's bytes with one more key at its end; the object is not empty."""
    body = data.rstrip()
    return body[:-1] + b"," + msgspec.json.encode(key) + b":" + msgspec.json.encode(value) + b"}"


def without_reasoning(data: bytes) -> bytes | None:
    """A chunk for a client that wants no reasoning, nor what would give it away; None where
    nothing else is in it."""
    chunk = msgspec.json.decode(data)
    for choice in chunk["choices"]:
        delta = choice.get("delta", {})
        thought = [delta.pop(key, None) for key in ("reasoning", "reasoning_content")]
        if any(thought) and not delta and choice.get("finish_reason") is None:
            return None
        choice["logprobs"] = None
        if "token_ids" in choice:
            choice["token_ids"] = None
    return msgspec.json.encode(chunk)


def trim_to_reasoning(event: bytes, keep_ids: int) -> bytes | None:
    """What a chat chunk says within the trace, of its first ``kept`` tokens, ending nothing; None
    where that is nothing."""
    chunk = msgspec.json.decode(event_data(event) or b"{}")
    choice = chunk["choices"][0]
    delta = choice["delta"]
    thought = {k: delta[k] for k in ("role", "reasoning", "reasoning_content") if k in delta}
    ids = choice.get("token_ids")
    if not thought and not ids:
        return None
    choice |= {"delta": thought, "finish_reason": None}
    choice.pop("stop_reason", None)
    chunk.pop("system_fingerprint", None)
    if ids:
        choice["token_ids"] = ids[:keep_ids]
    if choice.get("logprobs"):
        choice["logprobs"]["content"] = choice["logprobs"]["content"][:keep_ids]
    return encode_event(msgspec.json.encode(chunk))


class IdRewriter:
    """Give the chunks of a second stream the id and the time of the first."""

    __slots__ = ("_replacements",)

    def __init__(self, first: Chunk, second: Chunk) -> None:
        encode = msgspec.json.encode
        self._replacements = [
            (b'"id":' + encode(second.id), b'"id":' + encode(first.id)),
            (b'"created":' + encode(second.created), b'"created":' + encode(first.created)),
        ]

    def __call__(self, event: bytes) -> bytes:
        # Both keys stand before the choices, so the first place is theirs.
        for old, new in self._replacements:
            event = event.replace(old, new, 1)
        return event
