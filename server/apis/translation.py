"""What one request of an API is to the rest: a chat's request, and a chat's reply retold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import msgspec
from msgspec import Raw

from server.errors import GatewayError
from server.sse import data_of
from server.wire import Fields, given

__all__ = [
    "ASKED_OF_CHAT",
    "Said",
    "SaidChoice",
    "SaidDelta",
    "SaidToolCall",
    "Translation",
    "Untranslatable",
    "encoded",
    "error_of",
    "named_event",
    "read",
    "withheld",
]

_DONE = b"[DONE]"
_ABSENT = Raw()

ASKED_OF_CHAT: Fields = {
    "stream_options": Raw(b'{"include_usage":true}'),
    # Nothing is hidden from a translation, so nothing need be taken out of a chunk for it.
    "return_token_ids": Raw(b"true"),
}
_UNTELLABLE = (
    *("echo", "logprobs", "n", "prompt_logprobs", "return_token_ids", "stream_options"),
    *("top_logprobs", "use_beam_search"),
)


class Untranslatable(Exception):
    """The request asks for what a chat cannot be asked for. ``reason``: a word, for the count."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SaidFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class SaidToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: SaidFunction | None = None


class SaidDelta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[SaidToolCall] | None = None

    @property
    def thought(self) -> str | None:
        return self.reasoning if self.reasoning is not None else self.reasoning_content


class SaidChoice(msgspec.Struct):
    delta: SaidDelta = msgspec.field(default_factory=SaidDelta)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Said(msgspec.Struct):
    """What a chat's chunk says that is told on."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[SaidChoice] = []
    usage: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    error: Raw = _ABSENT
    adjourn: Raw = _ABSENT


_decode = msgspec.json.Decoder(Said).decode


class Translation(ABC):
    """``chat`` is what the engine is asked for. The rest retells what it answers, once."""

    chat: Fields
    finished = False
    """Whether the last event of a stream was told."""

    def tell(self, event: bytes) -> list[bytes]:
        """The events that tell what this one does. Comments stay what they are."""
        data = data_of(event)
        if data is None:
            return [event]
        if data == _DONE:
            return self.done()
        try:
            said = _decode(data)
        except msgspec.MsgspecError:
            return []  # counted where it was read
        if given(said.error):
            return [self.failed(*error_of(data))]
        return self.told(said)

    @abstractmethod
    def told(self, said: Said) -> list[bytes]:
        """The events that tell what a chunk says."""

    @abstractmethod
    def done(self) -> list[bytes]:
        """What stands behind the last chunk."""

    @abstractmethod
    def failed(self, kind: str, message: str, code: Any = None) -> bytes:
        """The event that tells of an error which the engine's stream told of."""

    @abstractmethod
    def broken_off(self, error: GatewayError) -> bytes:
        """The last event of a stream that the gateway cannot finish."""

    @abstractmethod
    def document(self, reply: dict[str, Any]) -> dict[str, Any]:
        """A chat's unstreamed reply in the shape of this API. Raises GatewayError where it
        cannot take it."""

    def refusal(self, error: bytes) -> bytes:
        """The body of an unstreamed reply where the stream brought this error."""
        return error


def error_of(data: bytes) -> tuple[str, str, Any]:
    """(kind, message, code) of an error that a chat's stream told of."""
    error = msgspec.json.decode(data)["error"]
    if not isinstance(error, dict):
        return "api_error", str(error), None
    return str(error.get("type")), str(error.get("message")), error.get("code")


def read(value: Raw, shape: Any) -> Any:
    """A field, read. Raises Untranslatable: what is wrong with it, the engine tells best."""
    try:
        return msgspec.json.decode(value, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Untranslatable("unreadable") from None


def withheld(fields: Fields, known: frozenset[str]) -> Fields:
    """The fields that go on as they are: less those that are translated. Raises Untranslatable
    for those that this API ignores and that would change the form of a chat's reply."""
    kept = {name: value for name, value in fields.items() if name not in known}
    if not kept.keys().isdisjoint(_UNTELLABLE):
        raise Untranslatable("foreign-field")
    return kept


def encoded(**fields: Any) -> Fields:
    """The fields that are not None."""
    return {k: Raw(msgspec.json.encode(v)) for k, v in fields.items() if v is not None}


def named_event(data: dict[str, Any]) -> bytes:
    """An event under its type's name."""
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), msgspec.json.encode(data))
