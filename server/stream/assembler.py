"""Put a stream's chunks together to the one document that an unstreamed client gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.types import Send

from adjourn.server.errors import GatewayError
from adjourn.server.stream.sinks import forward_response, response_headers
from adjourn.server.stream.sse import event_data
from adjourn.server.upstream import http

__all__ = ["Assembler", "assemble_message"]

_CONCATENATED_KEYS = ("token_ids", "text")


class Assembler:
    """A sink that builds one document from the stream's chunks, as the engine would have.

    Texts and lists are concatenated; of any other key the last value is kept. ``skeleton``: an
    unstreamed reply of this engine, for keys that a stream does not have. ``empty_content``: the
    engine's value for no content.

    state       content                                                       changed by
    ----------  ------------------------------------------------------------  ----------
    _reply      the top-level keys so far, without choices                    write
    _choices    the choices so far, by index                                  write
    _error      the data of an error event, which becomes the whole reply     write
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

    def open(self, response: http.Response) -> None:
        self._headers = [
            (name, b"application/json" if name == b"content-type" else value)
            for name, value in response_headers(response, self._extra_headers)
        ]

    async def forward_response(self, response: http.Response) -> None:
        self.has_started = True
        await forward_response(self._send, response, self._extra_headers)

    async def write(self, events: list[bytes]) -> None:
        for event in events:
            data = event_data(event)
            if data is None or data == b"[DONE]":
                continue
            try:
                chunk = msgspec.json.decode(data, type=dict[str, Any])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # the relay has counted it
            if chunk.get("error") is not None:
                self._error = data
                continue
            for choice in chunk.pop("choices", ()):
                self._choices.setdefault(choice.get("index", 0), _ChoiceAssembler()).add(choice)
            for key, value in chunk.items():
                if value is not None or key not in self._reply:
                    self._reply[key] = value

    def build_document(self) -> dict[str, Any]:
        """The reply so far, with the keys of the engine's own replies in their order."""
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
        """The reply's body for an error event of the engine."""
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
    """One choice of the document, built from its deltas."""

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
    """The message that the events of one choice make; for raw completions, the choice with its
    text."""
    choice = _ChoiceAssembler()
    for event in events:
        data = event_data(event)
        if data is None or data == b"[DONE]":
            continue
        for delta in msgspec.json.decode(data).get("choices") or ():
            choice.add(delta)
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
    """``value`` in the key order of ``shape``, with None for keys that only ``shape`` has."""
    return {key: value.get(key) for key in shape} | value
