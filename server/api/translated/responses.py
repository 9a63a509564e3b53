"""Translate a request of ``POST /v1/responses`` to a chat request."""

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
    """The fields that the response echoes, or that have other names in a chat request."""

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
    """Translates one Responses request. Raises Untranslatable if no chat request is equivalent."""

    def __init__(self, fields: Fields, engine_defaults: EngineDefaults) -> None:
        if not engine_defaults.example_response:
            raise Untranslatable("unexamined-api")
        request: _ResponsesRequest = decode_field(
            Raw(msgspec.json.encode(fields)), _ResponsesRequest
        )
        _check_translatable(request, engine_defaults)
        super().__init__(
            _initial_response(request, engine_defaults.example_response),
            request.request_id,
            engine_defaults,
        )
        self.chat_request = untranslated_fields(fields, _TRANSLATED_FIELDS) | ADDED_CHAT_FIELDS
        self.chat_request |= encode_fields(messages=_translate_messages(request))
        limit = request.max_output_tokens
        self.chat_request |= encode_fields(max_tokens=limit, max_completion_tokens=limit)
        if request.reasoning:
            self.chat_request |= encode_fields(reasoning_effort=request.reasoning.get("effort"))
        if request.truncation == "auto":
            self.chat_request |= encode_fields(truncate_prompt_tokens=-1)
        self.chat_request |= encode_fields(structured_outputs=_structured_outputs(request))
        if request.tools:
            self.chat_request |= encode_fields(
                tools=[_function_tool(tool) for tool in self.initial_response["tools"]],
                tool_choice=_chat_tool_choice(request.tool_choice),
            )


def _check_translatable(request: _ResponsesRequest, engine_defaults: EngineDefaults) -> None:
    """Raise Untranslatable for what only the engine's own endpoint supports, or must refuse."""
    include = set(request.include or ())
    reasons = {
        "background": request.background,
        "stored": request.previous_response_id
        or (request.store and engine_defaults.stores_responses),
        "raw-messages": request.enable_response_messages or request.previous_input_messages,
        "logprobs": "message.output_text.logprobs" in include,
        "unreadable": request.prompt is not None
        or include - _ALLOWED_INCLUDES
        or (not request.tools and request.tool_choice not in ("auto", "none")),
        "tools": any(tool.get("type") != "function" for tool in request.tools),
    }
    for reason, found in reasons.items():
        if found:
            raise Untranslatable(reason)


def _initial_response(request: _ResponsesRequest, example: Mapping[str, Any]) -> dict[str, Any]:
    """The response object before it has any output. ``example``: an initial response of the
    engine, for its keys and default values."""
    temperature = example["temperature"] if request.temperature is None else request.temperature
    if 0 < temperature < 0.01:
        temperature = 0.01  # the engine's minimum
    top_p = example["top_p"] if request.top_p is None else request.top_p
    echoed = {
        "instructions": request.instructions,
        "metadata": request.metadata,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "temperature": float(temperature),
        "tool_choice": request.tool_choice if request.tools else "none",
        "tools": [_fill_missing_keys(tool, example["tools"][0]) for tool in request.tools],
        "top_p": float(top_p) if temperature else 1.0,  # greedy
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "reasoning": _fill_missing_keys(request.reasoning, example["reasoning"]),
        "service_tier": request.service_tier,
        "status": "in_progress",
        "text": _echoed_text_config(request.text, example["text"]),
        "truncation": request.truncation,
        "user": request.user,
        "incomplete_details": None,
        "usage": None,
    }
    for name in ("frequency_penalty", "presence_penalty"):
        if (penalty := getattr(request, name)) is not None:
            echoed[name] = float(penalty)
    return {**example, **echoed}


def _fill_missing_keys(
    value: dict[str, Any] | None, example: dict[str, Any]
) -> dict[str, Any] | None:
    """The value with null for each key that only the example has."""
    return None if value is None else {**dict.fromkeys(example), **value}


def _echoed_text_config(
    text: dict[str, Any] | None, example: dict[str, Any]
) -> dict[str, Any] | None:
    config = _fill_missing_keys(text, example)
    if config and config["format"] and config["format"].get("type") == "json_schema":
        config["format"] = _fill_missing_keys(config["format"], example["format"])
    return config


def _structured_outputs(request: _ResponsesRequest) -> dict[str, Any] | None:
    """vLLM's structured_outputs field for the requested answer format."""
    answer_format = (request.text or {}).get("format") or {}
    if not answer_format:
        return request.structured_outputs
    if request.structured_outputs is not None:
        raise Untranslatable("unreadable")
    match answer_format.get("type"):
        case "text":
            return None
        case "json_object":
            return {"json_object": True}
        case "json_schema" if isinstance(answer_format.get("schema"), dict):
            return {"json": answer_format["schema"]}
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


def _translate_messages(request: _ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        messages.append({"role": "user", "content": request.input})
        return messages
    if request.input and request.input[-1].get("status") in _UNFINISHED_STATUSES:
        raise Untranslatable("partial-message")
    input_start = len(messages)
    for item in request.input:
        # Reasoning, text and calls of an assistant are separate items here, but one chat message.
        last = messages[-1] if len(messages) > input_start else {}
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
    """Add a value to an assistant's turn. False if the turn already has a value for the key."""
    if key == "tool_calls":
        turn[key] = [*turn.get(key, ()), *value]
    elif turn.get(key) is None:
        turn[key] = value
    else:
        return False
    return True


def _translate_item(item: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield ("message", chat message), or (key, value) of an assistant's chat message."""
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
    """The content as a string or as text parts."""
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": text} for text in _text_parts(content)]


def _assistant_text(content: Any) -> str:
    """The only text of an assistant's message; of several parts the engine would read just one."""
    if isinstance(content, str):
        return content
    texts = list(_text_parts(content))
    if len(texts) != 1:
        raise Untranslatable("unknown-content")
    return texts[0]


def _text_parts(content: Any) -> Iterator[str]:
    """The texts of content parts. Raises Untranslatable for parts that are not text."""
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
    """The text of a reasoning item, else its summary, else an empty string."""
    for parts in (item.get("content"), item.get("summary")):
        if parts:
            if not isinstance(parts, list) or not isinstance(parts[0], dict):
                raise Untranslatable("unreadable")
            return str(parts[0].get("text", ""))
    return ""
