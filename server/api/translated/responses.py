"""``POST /v1/responses``: what it asks for, as a chat's request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.api.translated.response_renderer import ResponseRenderer
from adjourn.server.api.translated.translation import (
    ADDED_CHAT_FIELDS,
    Untranslatable,
    decode_field,
    encode_fields,
    untranslated_fields,
)
from adjourn.server.stream.chunk import Fields

__all__ = ["RESPONSES_PATH", "ResponsesTranslation"]

RESPONSES_PATH = "/v1/responses"
_TRANSLATED_FIELDS = frozenset(
    {"background", "conversation", "enable_response_messages", "include", "input", "instructions"}
    | {"max_output_tokens", "max_tool_calls", "metadata", "previous_input_messages", "prompt"}
    | {"previous_response_id", "prompt_cache_key", "reasoning", "request_id", "service_tier"}
    | {"store", "stream_options", "text", "tool_choice", "tools", "top_logprobs", "truncation"}
    | {"user"}
)
_ALLOWED_INCLUDES = {
    *("code_interpreter_call.outputs", "computer_call_output.output.image_url"),
    *("file_search_call.results", "message.input_image.image_url", "reasoning.encrypted_content"),
}
_TEXT_PART_TYPES = ("input_text", "output_text", "text")
_UNFINISHED_STATUSES = ("in_progress", "incomplete")


class _ResponsesRequest(msgspec.Struct):
    """The fields that are told again in the response, or that a chat knows by other names."""

    input: str | list[dict[str, Any]]
    background: bool | None = None
    enable_response_messages: bool = False
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    previous_input_messages: Any = None
    previous_response_id: str | None = None
    prompt: Any = None
    reasoning: dict[str, Any] | None = None
    request_id: str | None = None
    service_tier: str = "auto"
    store: bool | None = True
    structured_outputs: dict[str, Any] | None = None
    temperature: float | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_p: float | None = None
    truncation: str | None = "disabled"
    user: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


class ResponsesTranslation(ResponseRenderer):
    """Raises Untranslatable."""

    def __init__(self, fields: Fields, engine_defaults: EngineDefaults) -> None:
        if not engine_defaults.example_response:
            raise Untranslatable("unexamined-api")
        asked: _ResponsesRequest = decode_field(Raw(msgspec.json.encode(fields)), _ResponsesRequest)
        _check_translatable(asked, engine_defaults)
        super().__init__(
            _initial_response(asked, engine_defaults.example_response),
            asked.request_id,
            engine_defaults,
        )
        self.chat_request = untranslated_fields(fields, _TRANSLATED_FIELDS) | ADDED_CHAT_FIELDS
        self.chat_request |= encode_fields(messages=_translate_messages(asked))
        limit = asked.max_output_tokens
        self.chat_request |= encode_fields(max_tokens=limit, max_completion_tokens=limit)
        if asked.reasoning:
            self.chat_request |= encode_fields(reasoning_effort=asked.reasoning.get("effort"))
        if asked.truncation == "auto":
            self.chat_request |= encode_fields(truncate_prompt_tokens=-1)
        self.chat_request |= encode_fields(structured_outputs=_structured_outputs(asked))
        if asked.tools:
            self.chat_request |= encode_fields(
                tools=[_function_tool(tool) for tool in self.initial_response["tools"]],
                tool_choice=_chat_tool_choice(asked.tool_choice),
            )


def _check_translatable(asked: _ResponsesRequest, habits: EngineDefaults) -> None:
    """Raises Untranslatable for what only the engine's own endpoint can do, or must refuse."""
    include = set(asked.include or ())
    reasons = {
        "background": asked.background,
        "stored": asked.previous_response_id or (asked.store and habits.stores_responses),
        "raw-messages": asked.enable_response_messages or asked.previous_input_messages,
        "logprobs": "message.output_text.logprobs" in include,
        "unreadable": asked.prompt is not None
        or include - _ALLOWED_INCLUDES
        or (not asked.tools and asked.tool_choice not in ("auto", "none")),
        "tools": any(tool.get("type") != "function" for tool in asked.tools),
    }
    for reason, found in reasons.items():
        if found:
            raise Untranslatable(reason)


# -- what is told again ------------------------------------------------------------------------


def _initial_response(asked: _ResponsesRequest, example: Mapping[str, Any]) -> dict[str, Any]:
    """The response before it has begun. ``example``: one of the engine's own, for the keys and
    defaults that it has there."""
    temperature = example["temperature"] if asked.temperature is None else asked.temperature
    if 0 < temperature < 0.01:
        temperature = 0.01  # as the engine does
    top_p = example["top_p"] if asked.top_p is None else asked.top_p
    told = {
        "instructions": asked.instructions,
        "metadata": asked.metadata,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "temperature": float(temperature),
        "tool_choice": asked.tool_choice if asked.tools else "none",
        "tools": [_fill_missing_keys(tool, example["tools"][0]) for tool in asked.tools],
        "top_p": float(top_p) if temperature else 1.0,  # greedy
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "reasoning": _fill_missing_keys(asked.reasoning, example["reasoning"]),
        "service_tier": asked.service_tier,
        "status": "in_progress",
        "text": _echoed_text_config(asked.text, example["text"]),
        "truncation": asked.truncation,
        "user": asked.user,
        "incomplete_details": None,
        "usage": None,
    }
    for name in ("frequency_penalty", "presence_penalty"):
        if (penalty := getattr(asked, name)) is not None:
            told[name] = float(penalty)
    return {**example, **told}


def _fill_missing_keys(
    value: dict[str, Any] | None, example: dict[str, Any]
) -> dict[str, Any] | None:
    """With null for what only the example has."""
    return None if value is None else {**dict.fromkeys(example), **value}


def _echoed_text_config(
    text: dict[str, Any] | None, example: dict[str, Any]
) -> dict[str, Any] | None:
    told = _fill_missing_keys(text, example)
    if told and told["format"] and told["format"].get("type") == "json_schema":
        told["format"] = _fill_missing_keys(told["format"], example["format"])
    return told


# -- what a chat is asked for ------------------------------------------------------------------


def _structured_outputs(asked: _ResponsesRequest) -> dict[str, Any] | None:
    """The form of the answer."""
    form = (asked.text or {}).get("format") or {}
    if not form:
        return asked.structured_outputs
    if asked.structured_outputs is not None:
        raise Untranslatable("unreadable")
    match form.get("type"):
        case "text":
            return None
        case "json_object":
            return {"json_object": True}
        case "json_schema" if isinstance(form.get("schema"), dict):
            return {"json": form["schema"]}
    raise Untranslatable("unreadable")


def _function_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": function}


def _chat_tool_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, str):
        return choice
    if choice.get("type") != "function":
        raise Untranslatable("tools")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _translate_messages(asked: _ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
        return messages
    if asked.input and asked.input[-1].get("status") in _UNFINISHED_STATUSES:
        raise Untranslatable("partial-message")
    begin = len(messages)
    for item in asked.input:
        # What an assistant thinks, says and calls are items of their own, and one turn.
        last = messages[-1] if len(messages) > begin else {}
        for key, value in _translate_item(item):
            if (
                key != "message"
                and last.get("role") == "assistant"
                and _merge_into_turn(last, key, value)
            ):
                continue
            messages.append(value if key == "message" else {"role": "assistant", key: value})
    return messages


def _merge_into_turn(turn: dict[str, Any], key: str, value: Any) -> bool:
    """Whether the turn has room for it."""
    if key == "tool_calls":
        turn[key] = [*turn.get(key, ()), *value]
    elif turn.get(key) is None:
        turn[key] = value
    else:
        return False
    return True


def _translate_item(item: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(what it is, itself): a message, or what an assistant's message has of it."""
    match item.get("type", "message"), item.get("role"):
        case "message", "assistant":
            yield "content", _assistant_text(item.get("content"))
        case "message", "user" | "system" | "developer" as role:
            yield "message", {"role": role, "content": _chat_content(item.get("content"))}
        case "reasoning", _:
            if item.get("encrypted_content"):
                raise Untranslatable("unknown-content")
            yield "reasoning", _reasoning_text(item)
        case "function_call", _:
            if item.get("namespace"):
                raise Untranslatable("tools")
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            yield "tool_calls", [call]
        case "function_call_output", _:
            result = {"role": "tool", "content": _chat_content(item.get("output"))}
            yield "message", result | {"tool_call_id": item.get("call_id")}
        case _:
            raise Untranslatable("unknown-content")


def _chat_content(content: Any) -> str | list[dict[str, Any]]:
    """A text, or parts that are. The chat's own rule tells whether they are."""
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": text} for text in _text_parts(content)]


def _assistant_text(content: Any) -> str:
    """What an assistant said; of several parts the engine would read one."""
    if isinstance(content, str):
        return content
    texts = list(_text_parts(content))
    if len(texts) != 1:
        raise Untranslatable("unknown-content")
    return texts[0]


def _text_parts(content: Any) -> Iterator[str]:
    if not isinstance(content, list):
        raise Untranslatable("unreadable")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_image", "input_audio", "input_file"):
            raise Untranslatable("not-text")
        if kind not in _TEXT_PART_TYPES or not isinstance(part.get("text"), str):
            raise Untranslatable("unknown-content")
        yield part["text"]


def _reasoning_text(item: dict[str, Any]) -> str:
    """Its text, or where it has none its summary."""
    for parts in (item.get("content"), item.get("summary")):
        if parts:
            if not isinstance(parts, list) or not isinstance(parts[0], dict):
                raise Untranslatable("unreadable")
            return str(parts[0].get("text", ""))
    return ""
