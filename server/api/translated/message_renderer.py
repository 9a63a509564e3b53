"""A chat's reply, as ``POST /v1/messages`` tells it: blocks of content, one behind the other."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from adjourn.server.api.translated.translation import (
    ChatChunk,
    ToolCallDelta,
    Translation,
    named_event,
    parse_error,
)
from adjourn.server.errors import BadRequest, GatewayError, error_event
from adjourn.server.stream.chunk import has_value

__all__ = ["MessageRenderer"]

_encode = msgspec.json.encode
# What stands before the text of a delta, of which there is one a token.
_DELTA_PREFIXES = {
    kind: (
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","delta":{"type":"%b","%b":' % (delta, key)
    )
    for kind, delta, key in (
        ("thinking", b"thinking_delta", b"thinking"),
        ("signature", b"signature_delta", b"signature"),
        ("text", b"text_delta", b"text"),
        ("tool_use", b"input_json_delta", b"partial_json"),
    )
}


class MessageRenderer(Translation):
    """One block is open at a time. Text beside a tool's arguments waits until these are whole."""

    def __init__(self) -> None:
        self._started = False
        self._sent_message_delta = False
        self._open_block_type: str | None = None
        self._block_index = 0
        self._open_call_id: str | None = None
        self._call_ids: dict[int, str] = {}
        self._latest_arguments: list[str] = []  # of the latest call
        self._pending_text: list[str] = []
        self._finish_and_stop_reason: tuple[str | None, str | int | None] = (None, None)

    def render_events(self, chunk: ChatChunk) -> list[bytes]:
        events: list[bytes] = []
        if not self._started:
            self._started = True
            events.append(_message_start(chunk))
        if not chunk.choices:
            if chunk.usage is not None and not self._sent_message_delta:
                events += [*self._stop_block(), self._render_message_delta(chunk)]
            return events
        choice = chunk.choices[0]
        if choice.finish_reason is not None:
            self._finish_and_stop_reason = (choice.finish_reason, choice.stop_reason)
        if thought := choice.delta.reasoning_text:
            events += self._append_text("thinking", thought)
        if content := choice.delta.content:
            if self._open_block_type == "tool_use":
                self._pending_text.append(content)
            else:
                events += self._append_text("text", content)
        for call in choice.delta.tool_calls or ():
            events += self._append_tool_call(call)
        return events

    def render_end(self) -> list[bytes]:
        end = (
            []
            if self._sent_message_delta
            else [*self._stop_block(), self._render_message_delta(ChatChunk())]
        )
        self.finished = True
        return [*end, named_event({"type": "message_stop"})]

    def render_engine_error(self, kind: str, message: str, code: Any = None) -> bytes:
        return named_event({"type": "error", "error": {"type": kind, "message": message}})

    def render_gateway_error(self, error: GatewayError) -> bytes:
        return error_event("/v1/messages", error)

    def error_body(self, error: bytes) -> bytes:
        kind, message, _ = parse_error(error)
        said = {"type": "error", "error": {"type": kind, "message": message}}
        return msgspec.json.encode(said)

    def _append_text(self, kind: str, text: str) -> list[bytes]:
        events: list[bytes] = []
        if self._open_block_type != kind:
            events = [*self._stop_block(), self._start_block({"type": kind, kind: ""})]
        events.append(self._block_delta(kind, text))
        return events

    def _append_tool_call(self, call: ToolCallDelta) -> list[bytes]:
        """A call's beginning, or more of its arguments."""
        events: list[bytes] = []
        function = call.function
        if call.id is not None:
            self._call_ids[call.index] = call.id
            if self._open_call_id != call.id and function is not None and function.name is not None:
                events = self._stop_block()
                block = {"type": "tool_use", "id": call.id, "name": function.name, "input": {}}
                events.append(self._start_block(block))
                self._open_call_id, self._latest_arguments = call.id, []
        arguments = function.arguments if function is not None else None
        if (
            arguments
            and self._open_call_id is not None
            and self._call_ids.get(call.index) == self._open_call_id
        ):
            self._latest_arguments.append(arguments)
            events.append(self._block_delta("tool_use", arguments))
        return events

    def _start_block(self, block: dict[str, Any]) -> bytes:
        self._open_block_type = block["type"]
        event = {"type": "content_block_start", "content_block": block, "index": self._block_index}
        return named_event(event)

    def _block_delta(self, kind: str, text: str) -> bytes:
        return b'%b%b},"index":%d}\n\n' % (_DELTA_PREFIXES[kind], _encode(text), self._block_index)

    def _stop_block(self) -> list[bytes]:
        """The end of the open block, and the text that waited for it."""
        if self._open_block_type is None:
            return []
        events: list[bytes] = []
        if self._open_block_type == "thinking":
            events.append(self._block_delta("signature", uuid.uuid4().hex))
        events.append(named_event({"type": "content_block_stop", "index": self._block_index}))
        self._block_index += 1
        self._open_block_type = self._open_call_id = None
        waiting, self._pending_text = "".join(self._pending_text), []
        return (
            [*events, *self._append_text("text", waiting), *self._stop_block()]
            if waiting
            else events
        )

    def _render_message_delta(self, said: ChatChunk) -> bytes:
        self._sent_message_delta = True
        finish, stop = self._finish_and_stop_reason
        called = bool(self._call_ids)
        reason, sequence = _stop_reason(
            finish or "stop", stop, called, called and _is_json("".join(self._latest_arguments))
        )
        event: dict[str, Any] = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": _usage(said.usage),
        }
        if has_value(said.adjourn):
            event["adjourn"] = said.adjourn
        return named_event(event)

    def build_document(self, reply: dict[str, Any]) -> dict[str, Any]:
        choice = reply["choices"][0]
        message = choice["message"]
        calls = message.get("tool_calls") or []
        content: list[dict[str, Any]] = []
        if thought := message.get("reasoning") or message.get("reasoning_content"):
            content.append({"type": "thinking", "thinking": thought, "signature": uuid.uuid4().hex})
        if text := message.get("content"):
            content.append({"type": "text", "text": text})
        content += [_tool_use_block(call) for call in calls]
        called = bool(calls)
        reason, sequence = _stop_reason(
            choice.get("finish_reason"), choice.get("stop_reason"), called, called
        )
        document = {
            "id": reply["id"],
            "type": "message",
            "role": "assistant",
            # Some clients take it for granted that there is a block.
            "content": content or [{"type": "text", "text": ""}],
            "model": reply["model"],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(reply.get("usage")),
        }
        return {key: value for key, value in document.items() if value is not None}


def _message_start(said: ChatChunk) -> bytes:
    message: dict[str, Any] = {
        "id": said.id,
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": said.model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": len(said.prompt_token_ids or ()), "output_tokens": 0},
    }
    return named_event({"type": "message_start", "message": message})


def _stop_reason(
    finish: str | None, stop: str | int | None, called: bool, whole: bool
) -> tuple[str | None, str | None]:
    """(stop_reason, stop_sequence). ``whole``: the calls' arguments are; one that a stop string
    cut short must not be carried out."""
    if finish == "length":
        return "max_tokens", None
    if finish not in ("stop", "tool_calls"):
        return None, None
    if not whole and isinstance(stop, str):
        return "stop_sequence", stop
    if whole or called or finish == "tool_calls":
        return "tool_use", None
    return "end_turn", None


def _usage(usage: dict[str, Any] | None) -> dict[str, Any]:
    """What was read from the cache or written to it is no input there."""
    usage = usage or {}
    told = {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "output_tokens": usage.get("completion_tokens") or 0,
    }
    details = usage.get("prompt_tokens_details") or {}
    for key, name in (
        ("cache_creation_input_tokens", "created_cache_tokens"),
        ("cache_read_input_tokens", "cached_tokens"),
    ):
        if (tokens := details.get(name)) is not None:
            told["input_tokens"] = max(told["input_tokens"] - tokens, 0)
            told[key] = tokens
    return told


def _tool_use_block(call: dict[str, Any]) -> dict[str, Any]:
    """Raises BadRequest, as the engine's own endpoint does, where there is no telling it."""
    function = call["function"]
    try:
        arguments = msgspec.json.decode(function["arguments"], type=dict[str, Any])
    except msgspec.DecodeError:
        raise BadRequest("the model's arguments of a tool are no JSON object") from None
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
