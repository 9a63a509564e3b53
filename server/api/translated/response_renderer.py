"""Render a chat reply as a reply of ``POST /v1/responses``: a sequence of output items."""

from __future__ import annotations

import uuid
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Raw

from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.api.translated.translation import (
    ChatChunk,
    ToolCallDelta,
    Translation,
    named_event,
)
from adjourn.server.errors import GatewayError
from adjourn.server.stream.chunk import has_value

__all__ = ["ResponseRenderer"]

_encode = msgspec.json.encode


class ResponseRenderer(Translation):
    """Renders the stream and the document of one response. One output item is open at a time.

    ``initial_response``: the response object before it has any output; ``_start_response`` adds
    the engine's id, time and model. State: the sequence number of the next event, the open item,
    the finished items and the finish reason.
    """

    def __init__(
        self,
        initial_response: dict[str, Any],
        response_id: str | None,
        engine_defaults: EngineDefaults,
    ) -> None:
        self.initial_response = initial_response
        self._response_id = response_id
        self._engine_defaults = engine_defaults
        self._sequence_number = 0
        self._started = False
        self._current_item: _OutputItem | None = None
        self._call_index: int | None = None
        self._output_items: list[dict[str, Any]] = []
        self._finish_reason: str | None = None

    def render_events(self, chunk: ChatChunk) -> list[bytes]:
        events: list[bytes] = []
        if not self._started:
            events = self._start_response(chunk)
        if not chunk.choices:
            if chunk.usage is not None and not self.finished:
                events += self._complete_response(chunk.usage, chunk.adjourn)
            return events
        choice = chunk.choices[0]
        self._finish_reason = choice.finish_reason or self._finish_reason
        if reasoning := choice.delta.reasoning_text:
            events += self._append_text(_ReasoningItem, reasoning)
        if content := choice.delta.content:
            events += self._append_text(_MessageItem, content)
        for call in choice.delta.tool_calls or ():
            events += self._append_tool_call(call)
        return events

    def render_end(self) -> list[bytes]:
        return [] if self.finished or not self._started else self._complete_response(None, Raw())

    def render_engine_error(self, kind: str, message: str, code: Any = None) -> bytes:
        code = kind if code is None else str(code)
        return self._next_event("error", code=code, message=message, param=None)

    def render_gateway_error(self, error: GatewayError) -> bytes:
        return self.render_engine_error(error.kind, error.message, error.code)

    def _next_event(self, kind: str, **fields: Any) -> bytes:
        event = {**fields, "sequence_number": self._sequence_number, "type": kind}
        self._sequence_number += 1
        return named_event(event)

    def _start_response(self, chunk: ChatChunk) -> list[bytes]:
        self._started = True
        self.initial_response |= self._identity_fields(
            chunk.id, chunk.created, chunk.model, len(chunk.prompt_token_ids or ())
        )
        kinds = ("response.created", "response.in_progress")
        return [self._next_event(kind, response=self.initial_response) for kind in kinds]

    def _identity_fields(
        self, chat_id: str, created: int, model: str, prompt_tokens: int
    ) -> dict[str, Any]:
        limits = [
            self.initial_response["max_output_tokens"],
            self._engine_defaults.output_limit(prompt_tokens),
        ]
        return {
            "id": self._response_id or f"resp_{chat_id.removeprefix('chatcmpl-')}",
            "created_at": created,
            "model": model,
            "max_output_tokens": min((limit for limit in limits if limit is not None), default=0),
        }

    def _append_text(self, kind: type[_OutputItem], text: str) -> list[bytes]:
        events: list[bytes] = []
        if type(self._current_item) is not kind:
            events = [*self._close_item(), *self._open_item(kind())]
        return [*events, *self._append_delta(text)]

    def _append_tool_call(self, call: ToolCallDelta) -> list[bytes]:
        events: list[bytes] = []
        function = call.function
        if function is None:
            return events
        if not isinstance(self._current_item, _FunctionCallItem) or call.index != self._call_index:
            self._call_index = call.index
            item = _FunctionCallItem(call.id or f"call_{uuid.uuid4().hex}", function.name or "")
            events = [*self._close_item(), *self._open_item(item)]
        return [*events, *self._append_delta(function.arguments)] if function.arguments else events

    def _open_item(self, item: _OutputItem) -> list[bytes]:
        self._current_item = item
        position = {"output_index": len(self._output_items)}
        events = [self._next_event("response.output_item.added", item=item.item_added, **position)]
        if item.part_added is not None:
            position |= {"content_index": 0}
            added = {"item_id": item.id, "part": item.part_added}
            events.append(self._next_event("response.content_part.added", **added, **position))
        return events

    def _append_delta(self, text: str) -> list[bytes]:
        item = self._current_item
        assert item is not None
        item.texts.append(text)
        event = item.delta_template % (
            _encode(text),
            len(self._output_items),
            self._sequence_number,
        )
        self._sequence_number += 1
        return [event]

    def _position_fields(self, item: _OutputItem) -> dict[str, Any]:
        position = {"item_id": item.id, "output_index": len(self._output_items)}
        return position if item.part_added is None else position | {"content_index": 0}

    def _close_item(self) -> list[bytes]:
        item, self._current_item = self._current_item, None
        if item is None:
            return []
        position = self._position_fields(item)
        events = [self._next_event(item.done_event_type, **item.done_fields, **position)]
        if item.part_added is not None:
            part = item.part_done
            events.append(self._next_event("response.content_part.done", part=part, **position))
        position = {"output_index": len(self._output_items)}
        self._output_items.append(item.item_done)
        done = self._next_event("response.output_item.done", item=item.item_done, **position)
        return [*events, done]

    def _complete_response(self, usage: dict[str, Any] | None, summary: Raw) -> list[bytes]:
        self.finished = True
        events = self._close_item()
        response = self.initial_response | _final_fields(
            self._output_items, self._finish_reason, usage
        )
        if has_value(summary):
            response["adjourn"] = summary
        return [*events, self._next_event("response.completed", response=response)]

    def build_document(self, reply: dict[str, Any]) -> dict[str, Any]:
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        message = choice["message"]
        items: list[_OutputItem] = []
        if reasoning := message.get("reasoning") or message.get("reasoning_content"):
            items.append(_ReasoningItem(reasoning))
        if text := message.get("content"):
            items.append(_MessageItem(text))
        for call in message.get("tool_calls") or ():
            function = call["function"]
            items.append(
                _FunctionCallItem(call["id"], function["name"], function.get("arguments") or "")
            )
        output = [item.item_done for item in items]
        for item in output:
            if item["type"] == "reasoning":
                item["status"] = None  # only streams state it
        identity = self._identity_fields(
            reply["id"], reply["created"], reply["model"], usage.get("prompt_tokens") or 0
        )
        return (
            self.initial_response
            | identity
            | _final_fields(output, choice.get("finish_reason"), usage)
        )


class _OutputItem:
    """An output item: its fields in the events that add it, extend it and complete it.

    State: ``texts``, to which the renderer appends each delta.
    """

    id_prefix: str
    delta_event_type: str
    done_event_type: str

    def __init__(self, text: str = "") -> None:
        self.id = f"{self.id_prefix}_{uuid.uuid4().hex[:16]}"
        self.texts = [text]
        self.extra_fields: dict[str, Any] = {}

    @cached_property
    def delta_template(self) -> bytes:
        """A delta event with placeholders for its text, the output index and the sequence number;
        prepared because there is one event per token."""
        fixed = {"item_id": self.id, **self.extra_fields}
        if self.part_added is not None:
            fixed["content_index"] = 0
        fixed["type"] = self.delta_event_type
        placeholders = b'{"delta":%b,"output_index":%d,"sequence_number":%d,'
        return b"event: %b\ndata: %b%b\n\n" % (
            self.delta_event_type.encode(),
            placeholders,
            _encode(fixed)[1:],
        )

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def item_added(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def item_done(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def part_added(self) -> dict[str, Any] | None:
        """The empty content part; None for an item without content parts."""
        return None

    @property
    def part_done(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def done_fields(self) -> dict[str, Any]:
        return {"text": self.text, **self.extra_fields}


class _ReasoningItem(_OutputItem):
    id_prefix = "rs"
    delta_event_type = "response.reasoning_text.delta"
    done_event_type = "response.reasoning_text.done"

    @property
    def item_added(self) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self.id, "summary": [], "type": "reasoning", "content": None}
        return item | {"encrypted_content": None, "status": "in_progress"}

    @property
    def item_done(self) -> dict[str, Any]:
        return self.item_added | {"content": [self.part_done], "status": "completed"}

    @property
    def part_added(self) -> dict[str, Any]:
        return {"text": "", "type": "reasoning_text"}

    @property
    def part_done(self) -> dict[str, Any]:
        return self.part_added | {"text": self.text}


class _MessageItem(_OutputItem):
    id_prefix = "msg"
    delta_event_type = "response.output_text.delta"
    done_event_type = "response.output_text.done"

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.extra_fields = {"logprobs": []}

    @property
    def item_added(self) -> dict[str, Any]:
        item = {"id": self.id, "content": [], "role": "assistant", "status": "in_progress"}
        return item | {"type": "message", "phase": None}

    @property
    def item_done(self) -> dict[str, Any]:
        return self.item_added | {"content": [self.part_done], "status": "completed"}

    @property
    def part_added(self) -> dict[str, Any]:
        return {"annotations": [], "text": "", "type": "output_text", "logprobs": []}

    @property
    def part_done(self) -> dict[str, Any]:
        return self.part_added | {"text": self.text, "logprobs": None}


class _FunctionCallItem(_OutputItem):
    id_prefix = "fc"
    delta_event_type = "response.function_call_arguments.delta"
    done_event_type = "response.function_call_arguments.done"

    def __init__(self, call_id: str, name: str, arguments: str = "") -> None:
        super().__init__(arguments)
        self._call_id = call_id
        self._name = name

    @property
    def item_added(self) -> dict[str, Any]:
        item = {"arguments": "", "call_id": self._call_id, "name": self._name, "id": self.id}
        item |= {"type": "function_call", "status": "in_progress"}
        return item | {"async": None, "caller": None, "namespace": None}

    @property
    def item_done(self) -> dict[str, Any]:
        return self.item_added | {"arguments": self.text, "status": "completed"}

    @property
    def done_fields(self) -> dict[str, Any]:
        return {"arguments": self.text, "name": self._name}


def _final_fields(
    output: list[dict[str, Any]], finish: str | None, usage: dict[str, Any] | None
) -> dict[str, Any]:
    is_truncated = finish == "length"
    return {
        "output": output,
        "status": "incomplete" if is_truncated else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_truncated else None,
        "usage": _usage(usage),
    }


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    prompt_details = usage.get("prompt_tokens_details") or {}
    completion_details = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "input_tokens_details": {
            "cached_tokens": prompt_details.get("cached_tokens") or 0,
            "cache_write_tokens": prompt_details.get("created_cache_tokens") or 0,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": usage.get("completion_tokens") or 0,
        "output_tokens_details": {
            "reasoning_tokens": completion_details.get("reasoning_tokens") or 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": usage.get("total_tokens") or 0,
    }
