"""Where a judged response goes: straight into the client's stream, or into one JSON document."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import httpx
import msgspec
from starlette.types import Send

from server.engine import forwarded_headers
from server.errors import GatewayError
from server.sse import data_of
from server.wire import event_of

__all__ = ["Assembler", "Sink", "StreamSink", "joined", "reply_headers"]

_STREAM_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold a stream back
)
# The server in front of us writes its own, and lengths change with what is edited.
_DROPPED = (b"date", b"content-length")
_JOINED = ("token_ids", "text")


class Sink(Protocol):
    """A client's stream, or an assembler for a client that wants none."""

    began: bool

    def open(self, response: httpx.Response) -> None:
        """The engine has begun to answer."""

    async def hand_through(self, response: httpx.Response) -> None:
        """The engine refused: its status, headers and body, unmodified."""

    def write(self, events: list[bytes]) -> Awaitable[None]: ...

    async def end(self, note: dict[str, Any] | None) -> None: ...

    async def fail(self, error: GatewayError) -> None:
        """The response cannot be finished. What was sent already must not look finished."""


def reply_headers(
    response: httpx.Response, extra: Sequence[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """An engine's reply headers for the client, ours going before its own."""
    ours = {name for name, _ in extra}
    raw = [(name.lower(), value) for name, value in response.headers.raw]
    kept = forwarded_headers(raw, ours=False)
    return [(n, v) for n, v in kept if n not in _DROPPED and n not in ours] + list(extra)


class StreamSink:
    """The client streams. The head is sent with the first events, so that an engine that fails
    before them still gets a proper status."""

    def __init__(self, send: Send, extra: Sequence[tuple[bytes, bytes]]) -> None:
        self.began = False
        self._send = send
        self._extra = extra
        self._headers: list[tuple[bytes, bytes]] = []

    def open(self, response: httpx.Response) -> None:
        self._headers = reply_headers(response, (*_STREAM_HEADERS, *self._extra))

    async def hand_through(self, response: httpx.Response) -> None:
        self.began = True
        await _hand_through(self._send, response, self._extra)

    def write(self, events: list[bytes]) -> Awaitable[None]:
        body = events[0] if len(events) == 1 else b"".join(events)
        if not self.began:
            return self._begin(body)
        return self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _begin(self, body: bytes) -> None:
        self.began = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, note: dict[str, Any] | None) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: GatewayError) -> None:
        await self.break_off(event_of(error.body))

    async def break_off(self, event: bytes) -> None:
        """An error event, and then no proper end: an SDK takes a clean one for a whole answer."""
        await self._send({"type": "http.response.body", "body": event, "more_body": True})


class Assembler:
    """The client wants one document: put the stream's chunks together as the engine would have.

    Texts are joined and lists put end to end; what is not known here is kept as it came last.
    ``skeleton`` is a whole reply of this engine's, for the keys that a stream does not bring.
    ``silence`` is its word for no content.
    """

    def __init__(
        self,
        send: Send,
        extra: Sequence[tuple[bytes, bytes]],
        skeleton: Mapping[str, Any],
        silence: str | None = None,
    ) -> None:
        self.began = False
        self._send = send
        self._extra = list(extra)
        self._skeleton = skeleton
        self._silence = silence
        self._headers: list[tuple[bytes, bytes]] = []
        self._reply: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._error: bytes | None = None

    def open(self, response: httpx.Response) -> None:
        self._headers = [
            (name, b"application/json" if name == b"content-type" else value)
            for name, value in reply_headers(response, self._extra)
        ]

    async def hand_through(self, response: httpx.Response) -> None:
        self.began = True
        await _hand_through(self._send, response, self._extra)

    async def write(self, events: list[bytes]) -> None:
        for event in events:
            data = data_of(event)
            if data is None or data == b"[DONE]":
                continue
            try:
                chunk = msgspec.json.decode(data, type=dict[str, Any])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # counted where it was read
            if chunk.get("error") is not None:
                self._error = data
                continue
            for choice in chunk.pop("choices", ()):
                self._choices.setdefault(choice.get("index", 0), _Choice()).add(choice)
            for key, value in chunk.items():
                if value is not None or key not in self._reply:
                    self._reply[key] = value

    def document(self) -> dict[str, Any]:
        """The reply so far, in the shape of the engine's own."""
        empty = self._skeleton
        reply = {**self._reply, "object": str(self._reply.get("object")).removesuffix(".chunk")}
        shape = (empty.get("choices") or [{}])[0]
        choices = self._choices or {0: _Choice()}
        reply["choices"] = [
            choices[index].document(shape, self._silence) for index in sorted(choices)
        ]
        if isinstance(usage := reply.get("usage"), dict):
            like = empty.get("usage") or {}
            details = {
                key: _filled(value, like.get(key) or {})
                for key, value in usage.items()
                if isinstance(value, dict)
            }
            reply["usage"] = _filled(usage | details, like)
        return _filled(reply, empty)

    def refusal(self, error: bytes) -> bytes:
        """The reply's body where the engine told of an error in its stream."""
        return error

    async def end(self, note: dict[str, Any] | None) -> None:
        status, body = 200, self._error
        if body is None:
            reply = self.document()
            if note is not None:
                reply["adjourn"] = note
                self._headers.append((b"x-adjourn", msgspec.json.encode(note)))
            body = msgspec.json.encode(reply)
        else:
            error = msgspec.json.decode(body)["error"]
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
            body = self.refusal(body)
        self.began = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*self._headers, (b"content-length", b"%d" % len(body))],
            }
        )
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: GatewayError) -> None:
        raise error


class _Choice:
    """One choice of a document, as far as it has come."""

    __slots__ = ("_calls", "_choice", "_message")

    def __init__(self) -> None:
        self._choice: dict[str, Any] = {}
        self._message: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, choice: dict[str, Any]) -> None:
        for key, value in choice.pop("delta", {}).items():
            if key == "tool_calls":
                for call in value or ():
                    self._add_call(call)
            else:
                _join(self._message, key, value)
        logprobs = choice.pop("logprobs", None)
        if logprobs:
            merged = self._choice.setdefault("logprobs", {})
            for key, value in logprobs.items():
                _join(merged, key, value)
        for key, value in choice.items():
            if key in _JOINED and value is not None:
                _join(self._choice, key, value)
            elif value is not None or key not in self._choice:
                self._choice[key] = value

    def _add_call(self, delta: dict[str, Any]) -> None:
        call = self._calls.setdefault(delta.pop("index", 0), {})
        function = delta.pop("function", None) or {}
        for key, value in delta.items():
            if value is not None:
                call[key] = value
        for key, value in function.items():
            _join(call.setdefault("function", {}), key, value)

    def document(self, shape: Mapping[str, Any], silence: str | None) -> dict[str, Any]:
        if "text" in self._choice:
            return _filled(self._choice, shape)
        message = dict(self._message)
        message["content"] = message.get("content") or silence
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        choice = {**self._choice, "message": _filled(message, shape.get("message", {}))}
        return _filled(choice, shape)


def joined(events: Iterable[bytes]) -> dict[str, Any]:
    """What the events of one choice say: a message, or a text among its choice's keys."""
    choice = _Choice()
    for event in events:
        data = data_of(event)
        if data is None or data == b"[DONE]":
            continue
        for said in msgspec.json.decode(data).get("choices") or ():
            choice.add(said)
    document = choice.document({}, None)
    message: dict[str, Any] = document.get("message", document)
    return message


def _join(target: dict[str, Any], key: str, value: Any) -> None:
    old = target.get(key)
    if isinstance(old, str) and isinstance(value, str) and key != "role":
        target[key] = old + value
    elif isinstance(old, list) and isinstance(value, list):
        old.extend(value)
    elif value is not None or key not in target:
        target[key] = value


def _filled(value: dict[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` in the order of ``shape``, with null for what only ``shape`` has."""
    return {key: value.get(key) for key in shape} | value


async def _hand_through(
    send: Send, response: httpx.Response, extra: Sequence[tuple[bytes, bytes]]
) -> None:
    headers = reply_headers(response, extra)
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for data in response.stream:  # type: ignore[union-attr]
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
