"""What one request of an API is to the rest: a chat's request, and a chat's reply retold."""

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
    # Nothing is hidden from a translation, so nothing need be taken out of a chunk for it.
    "return_token_ids": Raw(b"true"),
}
_UNSUPPORTED_FIELDS = (
    *("echo", "logprobs", "n", "prompt_logprobs", "return_token_ids", "stream_options"),
    *("top_logprobs", "use_beam_search"),
)


class Untranslatable(Exception):
    """The request asks for what a chat cannot be asked for. ``reason``: a word, for the count."""

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
    """What a chat's chunk says that is told on."""

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
    """``chat`` is what the engine is asked for. The rest retells what it answers, once."""

    chat_request: Fields
    finished = False
    """Whether the last event of a stream was told."""

    def translate_event(self, event: bytes) -> list[bytes]:
        """The events that tell what this one does. Comments stay what they are."""
        data = event_data(event)
        if data is None:
            return [event]
        if data == _DONE:
            return self.render_end()
        try:
            said = _decode_chunk(data)
        except msgspec.MsgspecError:
            return []  # counted where it was read
        if has_value(said.error):
            return [self.render_engine_error(*parse_error(data))]
        return self.render_events(said)

    @abstractmethod
    def render_events(self, chunk: ChatChunk) -> list[bytes]:
        """The events that tell what a chunk says."""

    @abstractmethod
    def render_end(self) -> list[bytes]:
        """What stands behind the last chunk."""

    @abstractmethod
    def render_engine_error(self, kind: str, message: str, code: Any = None) -> bytes:
        """The event that tells of an error which the engine's stream told of."""

    @abstractmethod
    def render_gateway_error(self, error: GatewayError) -> bytes:
        """The last event of a stream that the gateway cannot finish."""

    @abstractmethod
    def build_document(self, reply: dict[str, Any]) -> dict[str, Any]:
        """A chat's unstreamed reply in the shape of this API. Raises GatewayError where it
        cannot take it."""

    def error_body(self, error: bytes) -> bytes:
        """The body of an unstreamed reply where the stream brought this error."""
        return error


def parse_error(data: bytes) -> tuple[str, str, Any]:
    """(kind, message, code) of an error that a chat's stream told of."""
    error = msgspec.json.decode(data)["error"]
    if not isinstance(error, dict):
        return "api_error", str(error), None
    return str(error.get("type")), str(error.get("message")), error.get("code")


def decode_field(value: Raw, field_type: Any) -> Any:
    """A field, read. Raises Untranslatable: what is wrong with it, the engine tells best."""
    try:
        return msgspec.json.decode(value, type=field_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Untranslatable("unreadable") from None


def untranslated_fields(fields: Fields, known: frozenset[str]) -> Fields:
    """The fields that go on as they are: less those that are translated. Raises Untranslatable
    for those that this API ignores and that would change the form of a chat's reply."""
    kept = {name: value for name, value in fields.items() if name not in known}
    if not kept.keys().isdisjoint(_UNSUPPORTED_FIELDS):
        raise Untranslatable("foreign-field")
    return kept


def encode_fields(**fields: Any) -> Fields:
    """The fields that are not None."""
    return {k: Raw(msgspec.json.encode(v)) for k, v in fields.items() if v is not None}


def named_event(data: dict[str, Any]) -> bytes:
    """An event under its type's name."""
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), msgspec.json.encode(data))
