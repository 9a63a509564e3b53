"""Chunks of a stream: the fields that the gateway reads, and the edits that it makes in the bytes.

A chunk is decoded into these types but forwarded as the bytes that came: unknown fields are kept.
Quotes within JSON strings are escaped, so ``"token_ids":[`` in the bytes is a key, never text.
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
"""The top-level values of a request body, each as its JSON bytes."""
_ABSENT = msgspec.Raw()
LogprobsTrimmer = Callable[[dict[str, Any], int], None]
_EMPTY = (b"", b"null", b"[]")


def has_value(value: msgspec.Raw) -> bool:
    """Whether a raw JSON value is present and not null or empty."""
    return value is not _ABSENT and bytes(value) not in _EMPTY


class Delta(msgspec.Struct, gc=False):
    """What a chunk adds to a choice."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw = _ABSENT

    @property
    def reasoning_text(self) -> str:
        """The reasoning under either of its names."""
        return self.reasoning or self.reasoning_content or ""


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk. ``token_ids``: the ids of all its tokens, if the engine sends them."""

    index: int = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None
    logprobs: msgspec.Raw = _ABSENT
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct, gc=False):
    """One chunk of a stream. ``prompt_token_ids`` is in the first chunk only."""

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
"""Decode a chunk's JSON. Raises msgspec.MsgspecError."""
_decode_logprobs = msgspec.json.Decoder(_Logprobs).decode
_MISSING_LOGPROB = -9999.0


def top_logprobs(logprobs: msgspec.Raw) -> list[list[float]]:
    """The top log-probabilities, highest first: one list per token of the chunk.

    Raises msgspec.MsgspecError if they cannot be read.
    """
    if not has_value(logprobs):
        return []
    content = _decode_logprobs(logprobs).content or []
    return [sort_logprobs(top.logprob for top in one.top_logprobs) for one in content]


def sort_logprobs(logprobs: Iterable[float]) -> list[float]:
    """The log-probabilities of one token, highest first.

    Empty if vLLM returned only the token's own, as it does while it scores chosen tokens for
    another request.
    """
    found = sorted(logprobs, reverse=True)
    return [] if len(found) > 1 and found[1] <= _MISSING_LOGPROB else found


def trim_logprobs(
    event: bytes, choice: Choice, requested: int | None, trim: LogprobsTrimmer | None = None
) -> bytes:
    """The event with only the log-probabilities that the client requested.

    ``requested``: top tokens per position; None removes all. Also updates ``choice``. ``trim``
    removes the rest from log-probabilities that are not in the chat format.
    """
    kept = b"null"
    if requested is not None:
        logprobs = msgspec.json.decode(choice.logprobs)
        (trim or _trim_chat_logprobs)(logprobs, requested)
        kept = msgspec.json.encode(logprobs)
    key, received = b'"logprobs":', bytes(choice.logprobs)
    choice.logprobs = msgspec.Raw(kept)
    return event.replace(key + received, key + kept, 1)


def _trim_chat_logprobs(logprobs: dict[str, Any], requested: int) -> None:
    for one in logprobs.get("content") or ():
        del one["top_logprobs"][requested:]


def encode_event(data: bytes) -> bytes:
    """A server-sent event with this data."""
    return b"data: " + data + b"\n\n"


def has_only_token_ids(event: bytes, choice: Choice) -> bool:
    """Whether the chunk has token ids and nothing else: without ``return_token_ids`` the engine
    would not have sent it."""
    return (
        choice.delta.reasoning is None
        and choice.finish_reason is None
        and not has_value(choice.logprobs)
        and b'"delta":{}' in event
    )


def hide_ids(event: bytes, key: bytes = b'"token_ids":[') -> bytes:
    """The event as the engine would have sent it without ``return_token_ids``."""
    begin = event.rfind(key)
    if begin < 0:
        return event
    begin += len(key) - 1
    return event[:begin] + b"null" + event[event.index(b"]", begin) + 1 :]


def build_reasoning_chunk(
    chunk: Chunk, model: str, text: str, token_ids: Sequence[int] | None
) -> bytes:
    """The JSON of a chunk of the same stream as ``chunk``, with ``text`` as reasoning."""
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
    """The client's ``logit_bias`` with ``bias`` added for one token. An invalid value is returned
    unchanged: the engine refuses it."""
    try:
        biases = msgspec.json.decode(logit_bias, type=dict[str, float] | None) or {}
    except msgspec.MsgspecError:
        return logit_bias
    biases[str(token)] = min(biases.get(str(token), 0.0) + bias, 100.0)
    return msgspec.Raw(msgspec.json.encode(biases))


def with_choice_index(event: bytes, index: int) -> bytes:
    """An event of choice 0, as an event of choice ``index``."""
    if index == 0:
        return event
    first = b'"choices":[{"index":'
    if first + b"0" in event:
        return event.replace(first + b"0", first + b"%d" % index, 1)
    # llama.cpp and perhaps other engines write another key first.
    chunk = msgspec.json.decode(event_data(event) or b"{}")
    for choice in chunk.get("choices", ()):
        choice["index"] = index
    return encode_event(msgspec.json.encode(chunk))


def with_key(data: bytes, key: str, value: Any) -> bytes:
    """A non-empty JSON object's bytes with one more key at its end."""
    body = data.rstrip()
    return body[:-1] + b"," + msgspec.json.encode(key) + b":" + msgspec.json.encode(value) + b"}"


def without_reasoning(data: bytes) -> bytes | None:
    """A chunk without reasoning, token ids and log-probabilities, for a client that wants no
    reasoning; None if nothing remains."""
    chunk = msgspec.json.decode(data)
    for choice in chunk["choices"]:
        delta = choice.get("delta", {})
        removed = [delta.pop(key, None) for key in ("reasoning", "reasoning_content")]
        if any(removed) and not delta and choice.get("finish_reason") is None:
            return None
        choice["logprobs"] = None
        if "token_ids" in choice:
            choice["token_ids"] = None
    return msgspec.json.encode(chunk)


def trim_to_reasoning(event: bytes, keep_ids: int) -> bytes | None:
    """The reasoning part of a chat event, with its first ``keep_ids`` token ids and without a
    finish reason; None if there is none."""
    chunk = msgspec.json.decode(event_data(event) or b"{}")
    choice = chunk["choices"][0]
    delta = choice["delta"]
    kept = {k: delta[k] for k in ("role", "reasoning", "reasoning_content") if k in delta}
    ids = choice.get("token_ids")
    if not kept and not ids:
        return None
    choice |= {"delta": kept, "finish_reason": None}
    choice.pop("stop_reason", None)
    chunk.pop("system_fingerprint", None)
    if ids:
        choice["token_ids"] = ids[:keep_ids]
    if choice.get("logprobs"):
        choice["logprobs"]["content"] = choice["logprobs"]["content"][:keep_ids]
    return encode_event(msgspec.json.encode(chunk))


class IdRewriter:
    """Gives the events of a second stream the id and the time of the first."""

    __slots__ = ("_replacements",)

    def __init__(self, first: Chunk, second: Chunk) -> None:
        encode = msgspec.json.encode
        self._replacements = [
            (b'"id":' + encode(second.id), b'"id":' + encode(first.id)),
            (b'"created":' + encode(second.created), b'"created":' + encode(first.created)),
        ]

    def __call__(self, event: bytes) -> bytes:
        # Both keys come before the choices, so their first occurrence is meant.
        for old, new in self._replacements:
            event = event.replace(old, new, 1)
        return event
