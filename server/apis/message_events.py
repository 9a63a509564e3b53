"""A chat's reply, as ``POST /v1/messages`` tells it: blocks of content, one behind the other."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from server.apis.translation import Said, SaidToolCall, Translation, error_of, named_event
from server.errors import BadRequest, GatewayError, event_at
from server.wire import given

__all__ = ["MessageEvents"]

_encode = msgspec.json.encode
# What stands before the text of a delta, of which there is one a token.
_DELTAS = {
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


class MessageEvents(Translation):
    """One block is open at a time. Text beside a tool's arguments waits until these are whole."""

    def __init__(self) -> None:
        self._begun = False
        self._ended = False
        self._open: str | None = None
        self._index = 0
        self._call: str | None = None
        self._calls: dict[int, str] = {}
        self._arguments: list[str] = []  # of the latest call
        self._waiting: list[str] = []
        self._finish: tuple[str | None, str | int | None] = (None, None)

    def told(self, said: Said) -> list[bytes]:
        events: list[bytes] = []
        if not self._begun:
            self._begun = True
            events.append(_start(said))
        if not said.choices:
            if said.usage is not None and not self._ended:
                events += [*self._stop(), self._end(said)]
            return events
        choice = said.choices[0]
        if choice.finish_reason is not None:
            self._finish = (choice.finish_reason, choice.stop_reason)
        if thought := choice.delta.thought:
            events += self._say("thinking", thought)
        if content := choice.delta.content:
            if self._open == "tool_use":
                self._waiting.append(content)
            else:
                events += self._say("text", content)
        for call in choice.delta.tool_calls or ():
            events += self._call_on(call)
        return events

    def done(self) -> list[bytes]:
        end = [] if self._ended else [*self._stop(), self._end(Said())]
        self.finished = True
        return [*end, named_event({"type": "message_stop"})]

    def failed(self, kind: str, message: str, code: Any = None) -> bytes:
        return named_event({"type": "error", "error": {"type": kind, "message": message}})

    def broken_off(self, error: GatewayError) -> bytes:
        return event_at("/v1/messages", error)

    def refusal(self, error: bytes) -> bytes:
        kind, message, _ = error_of(error)
        said = {"type": "error", "error": {"type": kind, "message": message}}
        return msgspec.json.encode(said)

    def _say(self, kind: str, text: str) -> list[bytes]:
        events: list[bytes] = []
        if self._open != kind:
            events = [*self._stop(), self._start({"type": kind, kind: ""})]
        events.append(self._delta(kind, text))
        return events

    def _call_on(self, call: SaidToolCall) -> list[bytes]:
        """A call's beginning, or more of its arguments."""
        events: list[bytes] = []
        function = call.function
        if call.id is not None:
            self._calls[call.index] = call.id
            if self._call != call.id and function is not None and function.name is not None:
                events = self._stop()
                block = {"type": "tool_use", "id": call.id, "name": function.name, "input": {}}
                events.append(self._start(block))
                self._call, self._arguments = call.id, []
        arguments = function.arguments if function is not None else None
        if arguments and self._call is not None and self._calls.get(call.index) == self._call:
            self._arguments.append(arguments)
            events.append(self._delta("tool_use", arguments))
        return events

    def _start(self, block: dict[str, Any]) -> bytes:
        self._open = block["type"]
        event = {"type": "content_block_start", "content_block": block, "index": self._index}
        return named_event(event)

    def _delta(self, kind: str, text: str) -> bytes:
        return b'%b%b},"index":%d}\n\n' % (_DELTAS[kind], _encode(text), self._index)

    def _stop(self) -> list[bytes]:
        """The end of the open block, and the text that waited for it."""
        if self._open is None:
            return []
        events: list[bytes] = []
        if self._open == "thinking":
            events.append(self._delta("signature", uuid.uuid4().hex))
        events.append(named_event({"type": "content_block_stop", "index": self._index}))
        self._index += 1
        self._open = self._call = None
        waiting, self._waiting = "".join(self._waiting), []
        return [*events, *self._say("text", waiting), *self._stop()] if waiting else events

    def _end(self, said: Said) -> bytes:
        self._ended = True
        finish, stop = self._finish
        called = bool(self._calls)
        reason, sequence = _stop_reason(
            finish or "stop", stop, called, called and _is_json("".join(self._arguments))
        )
        event: dict[str, Any] = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": _usage(said.usage),
        }
        if given(said.adjourn):
            event["adjourn"] = said.adjourn
        return named_event(event)

    def document(self, reply: dict[str, Any]) -> dict[str, Any]:
        choice = reply["choices"][0]
        message = choice["message"]
        calls = message.get("tool_calls") or []
        content: list[dict[str, Any]] = []
        if thought := message.get("reasoning") or message.get("reasoning_content"):
            content.append({"type": "thinking", "thinking": thought, "signature": uuid.uuid4().hex})
        if text := message.get("content"):
            content.append({"type": "text", "text": text})
        content += [_tool_use(call) for call in calls]
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


def _start(said: Said) -> bytes:
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


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
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
