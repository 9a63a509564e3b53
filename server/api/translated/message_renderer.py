"""Render a chat reply as a reply of ``POST /v1/messages``: a sequence of content blocks."""

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
# The bytes before the text of a delta event, prepared because there is one event per token.
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
    """Renders the stream and the document of one message.

    One block is open at a time. Text that arrives while a tool_use block is open is kept in
    ``_pending_text`` until that block is stopped. State: the open block, and what the end of the
    message needs: the ids and latest arguments of tool calls, and the finish and stop reason.
    """

    def __init__(self) -> None:
        self._started = False
        self._sent_message_delta = False
        self._open_block_type: str | None = None
        self._block_index = 0
        self._open_call_id: str | None = None
        self._call_ids: dict[int, str] = {}
        self._latest_arguments: list[str] = []  # of the latest tool call
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
        if reasoning := choice.delta.reasoning_text:
            events += self._append_text("thinking", reasoning)
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
        return _encode({"type": "error", "error": {"type": kind, "message": message}})

    def _append_text(self, kind: str, text: str) -> list[bytes]:
        events: list[bytes] = []
        if self._open_block_type != kind:
            events = [*self._stop_block(), self._start_block({"type": kind, kind: ""})]
        events.append(self._block_delta(kind, text))
        return events

    def _append_tool_call(self, call: ToolCallDelta) -> list[bytes]:
        """Start a tool call, or append to its arguments."""
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
        """Stop the open block, if any, and send the pending text as a block."""
        if self._open_block_type is None:
            return []
        events: list[bytes] = []
        if self._open_block_type == "thinking":
            events.append(self._block_delta("signature", uuid.uuid4().hex))
        events.append(named_event({"type": "content_block_stop", "index": self._block_index}))
        self._block_index += 1
        self._open_block_type = self._open_call_id = None
        pending, self._pending_text = "".join(self._pending_text), []
        return (
            [*events, *self._append_text("text", pending), *self._stop_block()]
            if pending
            else events
        )

    def _render_message_delta(self, chunk: ChatChunk) -> bytes:
        self._sent_message_delta = True
        finish, stop = self._finish_and_stop_reason
        has_calls = bool(self._call_ids)
        is_whole = has_calls and _is_json("".join(self._latest_arguments))
        reason, sequence = _stop_reason(finish or "stop", stop, has_calls, is_whole)
        event: dict[str, Any] = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": _usage(chunk.usage),
        }
        if has_value(chunk.adjourn):
            event["adjourn"] = chunk.adjourn
        return named_event(event)

    def build_document(self, reply: dict[str, Any]) -> dict[str, Any]:
        choice = reply["choices"][0]
        message = choice["message"]
        calls = message.get("tool_calls") or []
        content: list[dict[str, Any]] = []
        if reasoning := message.get("reasoning") or message.get("reasoning_content"):
            block = {"type": "thinking", "thinking": reasoning, "signature": uuid.uuid4().hex}
            content.append(block)
        if text := message.get("content"):
            content.append({"type": "text", "text": text})
        content += [_tool_use_block(call) for call in calls]
        has_calls = bool(calls)
        reason, sequence = _stop_reason(
            choice.get("finish_reason"), choice.get("stop_reason"), has_calls, has_calls
        )
        document = {
            "id": reply["id"],
            "type": "message",
            "role": "assistant",
            # Some clients assume that there is at least one block.
            "content": content or [{"type": "text", "text": ""}],
            "model": reply["model"],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(reply.get("usage")),
        }
        return {key: value for key, value in document.items() if value is not None}


def _message_start(chunk: ChatChunk) -> bytes:
    message: dict[str, Any] = {
        "id": chunk.id,
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": chunk.model,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": len(chunk.prompt_token_ids or ()), "output_tokens": 0},
    }
    return named_event({"type": "message_start", "message": message})


def _stop_reason(
    finish: str | None, stop: str | int | None, has_calls: bool, is_whole: bool
) -> tuple[str | None, str | None]:
    """(stop_reason, stop_sequence). ``is_whole``: there are tool calls, with complete arguments. A
    client must not execute a call that a stop string cut short."""
    if finish == "length":
        return "max_tokens", None
    if finish not in ("stop", "tool_calls"):
        return None, None
    if not is_whole and isinstance(stop, str):
        return "stop_sequence", stop
    if is_whole or has_calls or finish == "tool_calls":
        return "tool_use", None
    return "end_turn", None


def _usage(usage: dict[str, Any] | None) -> dict[str, Any]:
    """Usage in this API's format, whose input tokens exclude those read from or written to the
    cache."""
    usage = usage or {}
    counts = {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "output_tokens": usage.get("completion_tokens") or 0,
    }
    details = usage.get("prompt_tokens_details") or {}
    for key, name in (
        ("cache_creation_input_tokens", "created_cache_tokens"),
        ("cache_read_input_tokens", "cached_tokens"),
    ):
        if (tokens := details.get(name)) is not None:
            counts["input_tokens"] = max(counts["input_tokens"] - tokens, 0)
            counts[key] = tokens
    return counts


def _tool_use_block(call: dict[str, Any]) -> dict[str, Any]:
    """Raises BadRequest if the arguments are not a JSON object, as the engine's own endpoint
    does."""
    function = call["function"]
    try:
        arguments = msgspec.json.decode(function["arguments"], type=dict[str, Any])
    except msgspec.DecodeError:
        raise BadRequest("the model's tool arguments are not a JSON object") from None
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True
