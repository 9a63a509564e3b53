"""A chat's reply, as ``POST /v1/responses`` tells it: items of output, each opened and done."""

from __future__ import annotations

import uuid
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Raw

from server.apis.habits import Habits
from server.apis.translation import Said, SaidToolCall, Translation, named_event
from server.errors import GatewayError
from server.wire import given

__all__ = ["ResponseEvents"]

_encode = msgspec.json.encode


class ResponseEvents(Translation):
    """One item is open at a time. ``echo`` is the response before it has begun."""

    def __init__(self, echo: dict[str, Any], name: str | None, habits: Habits) -> None:
        self.echo = echo
        self._name = name
        self._habits = habits
        self._number = 0
        self._begun = False
        self._item: _Item | None = None
        self._call: int | None = None
        self._output: list[dict[str, Any]] = []
        self._finish: str | None = None

    def told(self, said: Said) -> list[bytes]:
        events: list[bytes] = []
        if not self._begun:
            events = self._begin(said)
        if not said.choices:
            if said.usage is not None and not self.finished:
                events += self._end(said.usage, said.adjourn)
            return events
        choice = said.choices[0]
        self._finish = choice.finish_reason or self._finish
        if thought := choice.delta.thought:
            events += self._say(_Reasoning, thought)
        if content := choice.delta.content:
            events += self._say(_Message, content)
        for call in choice.delta.tool_calls or ():
            events += self._call_on(call)
        return events

    def done(self) -> list[bytes]:
        return [] if self.finished or not self._begun else self._end(None, Raw())

    def failed(self, kind: str, message: str, code: Any = None) -> bytes:
        code = kind if code is None else str(code)
        return self._event("error", code=code, message=message, param=None)

    def broken_off(self, error: GatewayError) -> bytes:
        return self.failed(error.kind, error.message, error.code)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {**fields, "sequence_number": self._number, "type": kind}
        self._number += 1
        return named_event(event)

    def _begin(self, said: Said) -> list[bytes]:
        self._begun = True
        prompt = len(said.prompt_token_ids or ())
        self.echo |= self._identity(said.id, said.created, said.model, prompt)
        begun = ("response.created", "response.in_progress")
        return [self._event(kind, response=self.echo) for kind in begun]

    def _identity(self, name: str, created: int, model: str, prompt: int) -> dict[str, Any]:
        limits = [self.echo["max_output_tokens"], self._habits.longest_output(prompt)]
        return {
            "id": self._name or f"resp_{name.removeprefix('chatcmpl-')}",
            "created_at": created,
            "model": model,
            "max_output_tokens": min((limit for limit in limits if limit is not None), default=0),
        }

    def _say(self, kind: type[_Item], text: str) -> list[bytes]:
        events: list[bytes] = []
        if type(self._item) is not kind:
            events = [*self._close(), *self._open(kind())]
        return [*events, *self._add(text)]

    def _call_on(self, call: SaidToolCall) -> list[bytes]:
        events: list[bytes] = []
        function = call.function
        if function is None:
            return events
        if not isinstance(self._item, _Call) or call.index != self._call:
            self._call = call.index
            item = _Call(call.id or f"call_{uuid.uuid4().hex}", function.name or "")
            events = [*self._close(), *self._open(item)]
        return [*events, *self._add(function.arguments)] if function.arguments else events

    def _open(self, item: _Item) -> list[bytes]:
        self._item = item
        place = {"output_index": len(self._output)}
        events = [self._event("response.output_item.added", item=item.opened, **place)]
        if item.part is not None:
            place |= {"content_index": 0}
            added = {"item_id": item.id, "part": item.part}
            events.append(self._event("response.content_part.added", **added, **place))
        return events

    def _add(self, text: str) -> list[bytes]:
        item = self._item
        assert item is not None
        item.texts.append(text)
        event = item.delta_event % (_encode(text), len(self._output), self._number)
        self._number += 1
        return [event]

    def _place(self, item: _Item) -> dict[str, Any]:
        place = {"item_id": item.id, "output_index": len(self._output)}
        return place if item.part is None else place | {"content_index": 0}

    def _close(self) -> list[bytes]:
        item, self._item = self._item, None
        if item is None:
            return []
        place = self._place(item)
        events = [self._event(item.done, **item.said, **place)]
        if item.part is not None:
            part = item.part_done
            events.append(self._event("response.content_part.done", part=part, **place))
        place = {"output_index": len(self._output)}
        self._output.append(item.closed)
        events.append(self._event("response.output_item.done", item=item.closed, **place))
        return events

    def _end(self, usage: dict[str, Any] | None, note: Raw) -> list[bytes]:
        self.finished = True
        events = self._close()
        response = self.echo | _ending(self._output, self._finish, usage)
        if given(note):
            response["adjourn"] = note
        return [*events, self._event("response.completed", response=response)]

    def document(self, reply: dict[str, Any]) -> dict[str, Any]:
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        message = choice["message"]
        items: list[_Item] = []
        if thought := message.get("reasoning") or message.get("reasoning_content"):
            items.append(_Reasoning(thought))
        if text := message.get("content"):
            items.append(_Message(text))
        for call in message.get("tool_calls") or ():
            function = call["function"]
            items.append(_Call(call["id"], function["name"], function.get("arguments") or ""))
        output = [item.closed for item in items]
        for item in output:
            if item["type"] == "reasoning":
                item["status"] = None  # which only a stream says
        identity = self._identity(
            reply["id"], reply["created"], reply["model"], usage.get("prompt_tokens") or 0
        )
        return self.echo | identity | _ending(output, choice.get("finish_reason"), usage)


class _Item:
    """An item of output, as its events show it."""

    prefix: str
    delta: str
    done: str

    def __init__(self, text: str = "") -> None:
        self.id = f"{self.prefix}_{uuid.uuid4().hex[:16]}"
        self.texts = [text]
        self.more: dict[str, Any] = {}

    @cached_property
    def delta_event(self) -> bytes:
        """An event of one delta, of which there is one a token: its text, the item's place and the
        event's number are left open."""
        place = {"item_id": self.id, **self.more}
        if self.part is not None:
            place["content_index"] = 0
        place["type"] = self.delta
        open_to = b'{"delta":%b,"output_index":%d,"sequence_number":%d,'
        return b"event: %b\ndata: %b%b\n\n" % (self.delta.encode(), open_to, _encode(place)[1:])

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def opened(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def closed(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def part(self) -> dict[str, Any] | None:
        """Its content before it says anything, where it has parts."""
        return None

    @property
    def part_done(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def said(self) -> dict[str, Any]:
        return {"text": self.text, **self.more}


class _Reasoning(_Item):
    prefix = "rs"
    delta = "response.reasoning_text.delta"
    done = "response.reasoning_text.done"

    @property
    def opened(self) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self.id, "summary": [], "type": "reasoning", "content": None}
        return item | {"encrypted_content": None, "status": "in_progress"}

    @property
    def closed(self) -> dict[str, Any]:
        return self.opened | {"content": [self.part_done], "status": "completed"}

    @property
    def part(self) -> dict[str, Any]:
        return {"text": "", "type": "reasoning_text"}

    @property
    def part_done(self) -> dict[str, Any]:
        return self.part | {"text": self.text}


class _Message(_Item):
    prefix = "msg"
    delta = "response.output_text.delta"
    done = "response.output_text.done"

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.more = {"logprobs": []}

    @property
    def opened(self) -> dict[str, Any]:
        item = {"id": self.id, "content": [], "role": "assistant", "status": "in_progress"}
        return item | {"type": "message", "phase": None}

    @property
    def closed(self) -> dict[str, Any]:
        return self.opened | {"content": [self.part_done], "status": "completed"}

    @property
    def part(self) -> dict[str, Any]:
        return {"annotations": [], "text": "", "type": "output_text", "logprobs": []}

    @property
    def part_done(self) -> dict[str, Any]:
        return self.part | {"text": self.text, "logprobs": None}


class _Call(_Item):
    prefix = "fc"
    delta = "response.function_call_arguments.delta"
    done = "response.function_call_arguments.done"

    def __init__(self, call: str, name: str, arguments: str = "") -> None:
        super().__init__(arguments)
        self._call = call
        self._name = name

    @property
    def opened(self) -> dict[str, Any]:
        item = {"arguments": "", "call_id": self._call, "name": self._name, "id": self.id}
        item |= {"type": "function_call", "status": "in_progress"}
        return item | {"async": None, "caller": None, "namespace": None}

    @property
    def closed(self) -> dict[str, Any]:
        return self.opened | {"arguments": self.text, "status": "completed"}

    @property
    def said(self) -> dict[str, Any]:
        return {"arguments": self.text, "name": self._name}


def _ending(
    output: list[dict[str, Any]], finish: str | None, usage: dict[str, Any] | None
) -> dict[str, Any]:
    cut_short = finish == "length"
    return {
        "output": output,
        "status": "incomplete" if cut_short else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut_short else None,
        "usage": _usage(usage),
    }


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    read = usage.get("prompt_tokens_details") or {}
    drawn = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "input_tokens_details": {
            "cached_tokens": read.get("cached_tokens") or 0,
            "cache_write_tokens": read.get("created_cache_tokens") or 0,
            "input_tokens_per_turn": [],
            "cached_tokens_per_turn": [],
        },
        "output_tokens": usage.get("completion_tokens") or 0,
        "output_tokens_details": {
            "reasoning_tokens": drawn.get("reasoning_tokens") or 0,
            "tool_output_tokens": 0,
            "output_tokens_per_turn": [],
            "tool_output_tokens_per_turn": [],
        },
        "total_tokens": usage.get("total_tokens") or 0,
    }
