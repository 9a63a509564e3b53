"""Where a judged response goes: straight into the client's stream, or into one JSON document."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import httpx
import msgspec
from starlette.types import Send

from adjourn.server.errors import GatewayError
from adjourn.server.stream.chunk import encode_event
from adjourn.server.stream.sse import event_data
from adjourn.server.upstream.client import forwarded_headers

__all__ = ["Assembler", "Sink", "StreamSink", "assemble_message", "response_headers"]

_STREAM_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold a stream back
)
# The server in front of us writes its own, and lengths change with what is edited.
_DROPPED_HEADERS = (b"date", b"content-length")
_CONCATENATED_KEYS = ("token_ids", "text")


class Sink(Protocol):
    """A client's stream, or an assembler for a client that wants none."""

    has_started: bool

    def open(self, response: httpx.Response) -> None:
        """The engine has begun to answer."""

    async def forward_response(self, response: httpx.Response) -> None:
        """The engine refused: its status, headers and body, unmodified."""

    def write(self, events: list[bytes]) -> Awaitable[None]: ...

    async def end(self, summary: dict[str, Any] | None) -> None: ...

    async def fail(self, error: GatewayError) -> None:
        """The response cannot be finished. What was sent already must not look finished."""


def response_headers(
    response: httpx.Response, extra_headers: Sequence[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """An engine's reply headers for the client, ours going before its own."""
    ours = {name for name, _ in extra_headers}
    raw = [(name.lower(), value) for name, value in response.headers.raw]
    kept = forwarded_headers(raw, strip_gateway_headers=False)
    return [(n, v) for n, v in kept if n not in _DROPPED_HEADERS and n not in ours] + list(
        extra_headers
    )


class StreamSink:
    """The client streams. The head is sent with the first events, so that an engine that fails
    before them still gets a proper status."""

    def __init__(self, send: Send, extra_headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.has_started = False
        self._send = send
        self._extra_headers = extra_headers
        self._headers: list[tuple[bytes, bytes]] = []

    def open(self, response: httpx.Response) -> None:
        self._headers = response_headers(response, (*_STREAM_HEADERS, *self._extra_headers))

    async def forward_response(self, response: httpx.Response) -> None:
        self.has_started = True
        await _forward_response(self._send, response, self._extra_headers)

    def write(self, events: list[bytes]) -> Awaitable[None]:
        body = events[0] if len(events) == 1 else b"".join(events)
        if not self.has_started:
            return self._write_first(body)
        return self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _write_first(self, body: bytes) -> None:
        self.has_started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, summary: dict[str, Any] | None) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: GatewayError) -> None:
        await self.abort_with_event(encode_event(error.body))

    async def abort_with_event(self, event: bytes) -> None:
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
        extra_headers: Sequence[tuple[bytes, bytes]],
        skeleton: Mapping[str, Any],
        empty_content: str | None = None,
    ) -> None:
        self.has_started = False
        self._send = send
        self._extra_headers = list(extra_headers)
        self._skeleton = skeleton
        self._empty_content = empty_content
        self._headers: list[tuple[bytes, bytes]] = []
        self._reply: dict[str, Any] = {}
        self._choices: dict[int, _ChoiceAssembler] = {}
        self._error: bytes | None = None

    def open(self, response: httpx.Response) -> None:
        self._headers = [
            (name, b"application/json" if name == b"content-type" else value)
            for name, value in response_headers(response, self._extra_headers)
        ]

    async def forward_response(self, response: httpx.Response) -> None:
        self.has_started = True
        await _forward_response(self._send, response, self._extra_headers)

    async def write(self, events: list[bytes]) -> None:
        for event in events:
            data = event_data(event)
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
                self._choices.setdefault(choice.get("index", 0), _ChoiceAssembler()).add(choice)
            for key, value in chunk.items():
                if value is not None or key not in self._reply:
                    self._reply[key] = value

    def build_document(self) -> dict[str, Any]:
        """The reply so far, in the shape of the engine's own."""
        empty = self._skeleton
        reply = {**self._reply, "object": str(self._reply.get("object")).removesuffix(".chunk")}
        shape = (empty.get("choices") or [{}])[0]
        choices = self._choices or {0: _ChoiceAssembler()}
        reply["choices"] = [
            choices[index].build_document(shape, self._empty_content) for index in sorted(choices)
        ]
        if isinstance(usage := reply.get("usage"), dict):
            like = empty.get("usage") or {}
            details = {
                key: _fill_missing_keys(value, like.get(key) or {})
                for key, value in usage.items()
                if isinstance(value, dict)
            }
            reply["usage"] = _fill_missing_keys(usage | details, like)
        return _fill_missing_keys(reply, empty)

    def error_body(self, error: bytes) -> bytes:
        """The reply's body where the engine told of an error in its stream."""
        return error

    async def end(self, summary: dict[str, Any] | None) -> None:
        status, body = 200, self._error
        if body is None:
            reply = self.build_document()
            if summary is not None:
                reply["adjourn"] = summary
                self._headers.append((b"x-adjourn", msgspec.json.encode(summary)))
            body = msgspec.json.encode(reply)
        else:
            error = msgspec.json.decode(body)["error"]
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
            body = self.error_body(body)
        self.has_started = True
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


class _ChoiceAssembler:
    """One choice of a document, as far as it has come."""

    __slots__ = ("_choice", "_message", "_tool_calls")

    def __init__(self) -> None:
        self._choice: dict[str, Any] = {}
        self._message: dict[str, Any] = {}
        self._tool_calls: dict[int, dict[str, Any]] = {}

    def add(self, choice: dict[str, Any]) -> None:
        for key, value in choice.pop("delta", {}).items():
            if key == "tool_calls":
                for call in value or ():
                    self._add_tool_call(call)
            else:
                _merge_value(self._message, key, value)
        logprobs = choice.pop("logprobs", None)
        if logprobs:
            merged = self._choice.setdefault("logprobs", {})
            for key, value in logprobs.items():
                _merge_value(merged, key, value)
        for key, value in choice.items():
            if key in _CONCATENATED_KEYS and value is not None:
                _merge_value(self._choice, key, value)
            elif value is not None or key not in self._choice:
                self._choice[key] = value

    def _add_tool_call(self, delta: dict[str, Any]) -> None:
        call = self._tool_calls.setdefault(delta.pop("index", 0), {})
        function = delta.pop("function", None) or {}
        for key, value in delta.items():
            if value is not None:
                call[key] = value
        for key, value in function.items():
            _merge_value(call.setdefault("function", {}), key, value)

    def build_document(self, shape: Mapping[str, Any], empty_content: str | None) -> dict[str, Any]:
        if "text" in self._choice:
            return _fill_missing_keys(self._choice, shape)
        message = dict(self._message)
        message["content"] = message.get("content") or empty_content
        if self._tool_calls:
            message["tool_calls"] = [self._tool_calls[index] for index in sorted(self._tool_calls)]
        choice = {**self._choice, "message": _fill_missing_keys(message, shape.get("message", {}))}
        return _fill_missing_keys(choice, shape)


def assemble_message(events: Iterable[bytes]) -> dict[str, Any]:
    """What the events of one choice say: a message, or a text among its choice's keys."""
    choice = _ChoiceAssembler()
    for event in events:
        data = event_data(event)
        if data is None or data == b"[DONE]":
            continue
        for said in msgspec.json.decode(data).get("choices") or ():
            choice.add(said)
    document = choice.build_document({}, None)
    message: dict[str, Any] = document.get("message", document)
    return message


def _merge_value(target: dict[str, Any], key: str, value: Any) -> None:
    old = target.get(key)
    if isinstance(old, str) and isinstance(value, str) and key != "role":
        target[key] = old + value
    elif isinstance(old, list) and isinstance(value, list):
        old.extend(value)
    elif value is not None or key not in target:
        target[key] = value


def _fill_missing_keys(value: dict[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` in the order of ``shape``, with null for what only ``shape`` has."""
    return {key: value.get(key) for key in shape} | value


async def _forward_response(
    send: Send, response: httpx.Response, extra_headers: Sequence[tuple[bytes, bytes]]
) -> None:
    headers = response_headers(response, extra_headers)
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for data in response.stream:  # type: ignore[union-attr]
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
