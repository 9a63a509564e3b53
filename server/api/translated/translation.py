"""The ``Translation`` of one request: to a chat request, and the chat reply back to its API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import msgspec
from msgspec import Raw

from adjourn.server.errors import GatewayError
from adjourn.server.stream.chunk import Fields, has_value
from adjourn.server.stream.sse import event_data

__all__ = [
    "ADDED_CHAT_FIELDS",
    "ChatChoice",
    "ChatChunk",
    "ChatDelta",
    "ToolCallDelta",
    "Translation",
    "Untranslatable",
    "decode_field",
    "encode_fields",
    "named_event",
    "parse_error",
    "untranslated_fields",
]

_DONE = b"[DONE]"
_ABSENT = Raw()

ADDED_CHAT_FIELDS: Fields = {
    "stream_options": Raw(b'{"include_usage":true}'),
    # A translation ignores what its API lacks, so chunks need not be stripped of token ids.
    "return_token_ids": Raw(b"true"),
}
_UNSUPPORTED_FIELDS = (
    *("echo", "logprobs", "n", "prompt_logprobs", "return_token_ids", "stream_options"),
    *("top_logprobs", "use_beam_search"),
)


class Untranslatable(Exception):
    """The request has no equivalent chat request. ``reason``: a label for metrics and headers."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FunctionCallDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: FunctionCallDelta | None = None


class ChatDelta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None

    @property
    def reasoning_text(self) -> str | None:
        return self.reasoning if self.reasoning is not None else self.reasoning_content


class ChatChoice(msgspec.Struct):
    delta: ChatDelta = msgspec.field(default_factory=ChatDelta)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class ChatChunk(msgspec.Struct):
    """The fields of a chat chunk that translations use."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[ChatChoice] = []
    usage: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    error: Raw = _ABSENT
    adjourn: Raw = _ABSENT


_decode_chunk = msgspec.json.Decoder(ChatChunk).decode


class Translation(ABC):
    """Translates one request, and its one response. ``chat_request``: the engine's request body.

    State: a stream's progress, changed by ``translate_event`` and ``render_*``.
    """

    chat_request: Fields
    finished = False
    """True once the last event of a stream was rendered."""

    def translate_event(self, event: bytes) -> list[bytes]:
        """The API's events for an event of the chat stream. SSE comments are kept as they are."""
        data = event_data(event)
        if data is None:
            return [event]
        if data == _DONE:
            return self.render_end()
        try:
            chunk = _decode_chunk(data)
        except msgspec.MsgspecError:
            return []  # already counted by the relay
        if has_value(chunk.error):
            return [self.render_engine_error(*parse_error(data))]
        return self.render_events(chunk)

    @abstractmethod
    def render_events(self, chunk: ChatChunk) -> list[bytes]:
        """The events for a chunk of the chat stream."""

    @abstractmethod
    def render_end(self) -> list[bytes]:
        """The events after the last chunk."""

    @abstractmethod
    def render_engine_error(self, kind: str, message: str, code: Any = None) -> bytes:
        """The event for an error that the engine sent in its stream."""

    @abstractmethod
    def render_gateway_error(self, error: GatewayError) -> bytes:
        """The last event of a stream that the gateway cannot finish."""

    @abstractmethod
    def build_document(self, reply: dict[str, Any]) -> dict[str, Any]:
        """This API's document for a chat's JSON reply.

        Raises GatewayError if the reply has no equivalent.
        """

    def error_body(self, error: bytes) -> bytes:
        """The body of a JSON reply if the engine's stream contained this error."""
        return error


def parse_error(data: bytes) -> tuple[str, str, Any]:
    """(kind, message, code) of an error in a chat stream."""
    error = msgspec.json.decode(data)["error"]
    if not isinstance(error, dict):
        return "api_error", str(error), None
    return str(error.get("type")), str(error.get("message")), error.get("code")


def decode_field(value: Raw, field_type: Any) -> Any:
    """Decode a field. Raises Untranslatable, so that the engine reports what is wrong with it."""
    try:
        return msgspec.json.decode(value, type=field_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Untranslatable("unreadable") from None


def untranslated_fields(fields: Fields, known: frozenset[str]) -> Fields:
    """The fields that go unchanged into the chat request: all but the ``known`` ones.

    Raises Untranslatable for a field that this API ignores but that would change the format of a
    chat reply.
    """
    kept = {name: value for name, value in fields.items() if name not in known}
    if not kept.keys().isdisjoint(_UNSUPPORTED_FIELDS):
        raise Untranslatable("foreign-field")
    return kept


def encode_fields(**fields: Any) -> Fields:
    """Encode the fields that are not None."""
    return {k: Raw(msgspec.json.encode(v)) for k, v in fields.items() if v is not None}


def named_event(data: dict[str, Any]) -> bytes:
    """An SSE event named after its ``type``."""
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), msgspec.json.encode(data))
