"""Translate a request of ``POST /v1/messages`` to a chat request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.api.translated.message_renderer import MessageRenderer
from adjourn.server.api.translated.translation import (
    ADDED_CHAT_FIELDS,
    Untranslatable,
    decode_field,
    encode_fields,
    untranslated_fields,
)
from adjourn.server.stream.chunk import Fields

__all__ = ["MESSAGES_PATH", "MessagesTranslation"]

MESSAGES_PATH = "/v1/messages"
_TRANSLATED_FIELDS = frozenset(
    {"messages", "metadata", "output_config", "stop_sequences", "system", "thinking"}
    | {"tool_choice", "tools"}
)
_BILLING_PREFIX = "x-anthropic-billing-header"
"""Claude Code's attribution, which is new in each request and would defeat the prefix cache."""


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    source: dict[str, Any] | None = None
    id: str | None = None
    tool_use_id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    content: str | list[dict[str, Any]] | None = None
    thinking: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class _OutputFormat(msgspec.Struct):
    type: str = "json_schema"
    schema: dict[str, Any] | None = None


class _OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: _OutputFormat | None = None


class MessagesTranslation(MessageRenderer):
    """Translates one Messages request. Raises Untranslatable if no chat request is equivalent."""

    def __init__(self, fields: Fields, engine_defaults: EngineDefaults) -> None:
        super().__init__()
        if not {"messages", "max_tokens"} <= fields.keys():
            raise Untranslatable("unreadable")
        self.chat_request = untranslated_fields(fields, _TRANSLATED_FIELDS) | ADDED_CHAT_FIELDS
        self.chat_request |= encode_fields(
            messages=list(_translate_messages(fields, engine_defaults.merges_system_messages))
        )
        self.chat_request["max_completion_tokens"] = fields["max_tokens"]
        if "stop_sequences" in fields:
            self.chat_request["stop"] = fields["stop_sequences"]
        self.chat_request |= _output_options(fields) | _tool_fields(fields)


def _translate_messages(fields: Fields, merges_system: bool | None) -> Iterator[dict[str, Any]]:
    messages = decode_field(fields["messages"], list[_Message])
    system = _system_texts(
        decode_field(fields["system"], str | list[_Block] | None) if "system" in fields else ""
    )
    inline = any(message.role == "system" for message in messages)
    if inline and merges_system is None:
        raise Untranslatable("inline-system")  # unknown what the engine does with these
    if inline and merges_system:
        system += [
            text for m in messages if m.role == "system" for text in _system_texts(m.content)
        ]
    if system:
        yield {"role": "system", "content": "".join(system)}
    for message in messages:
        if message.role != "system":
            yield from _translate_message(message)
        elif not merges_system and (texts := _system_texts(message.content)):
            yield {"role": "system", "content": "".join(texts)}


def _system_texts(content: str | list[_Block] | None) -> list[str]:
    """The texts of a system prompt, without the billing header."""
    if isinstance(content, str):
        parts = [content]
    else:
        blocks = content or []
        if any(block.type in ("tool_addition", "tool_removal") for block in blocks):
            raise Untranslatable("tool-changes")
        parts = [block.text or "" for block in blocks if block.type == "text"]
    return [part for part in parts if part and not part.startswith(_BILLING_PREFIX)]


def _translate_message(message: _Message) -> Iterator[dict[str, Any]]:
    """Each tool result as a message of its own, then the rest of the turn."""
    if message.role not in ("user", "assistant"):
        raise Untranslatable("unreadable")
    turn: dict[str, Any] = {"role": message.role}
    if isinstance(message.content, str):
        yield turn | {"content": message.content}
        return
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for block in message.content:
        match block.type:
            case "text":
                if block.text:
                    parts.append({"type": "text", "text": block.text})
            case "thinking":
                if block.thinking is not None:
                    reasoning.append(block.thinking)
            case "tool_use":
                calls.append(_chat_tool_call(block))
            case "tool_result" if message.role == "user":
                yield _tool_message(block)
            case "redacted_thinking" | "tool_reference":
                pass  # encrypted, or only a name that a tool result mentions
            case "image":
                raise Untranslatable("not-text")
            case _:
                raise Untranslatable("unknown-content")
    if reasoning:
        turn["reasoning"] = "".join(reasoning)
    if calls:
        turn["tool_calls"] = calls
    if parts:
        turn["content"] = parts[0]["text"] if len(parts) == 1 else parts
    if message.role != "user" or "content" in turn:
        yield turn


def _chat_tool_call(block: _Block) -> dict[str, Any]:
    return {
        "id": block.id or f"call_{int(time.time())}",
        "type": "function",
        "function": {"name": block.name or "", "arguments": json.dumps(block.input or {})},
    }


def _tool_message(block: _Block) -> dict[str, Any]:
    content = block.content or ""
    if not isinstance(content, str):
        if any(item.get("type") != "text" for item in content):
            raise Untranslatable("not-text")
        content = "\n".join(item.get("text", "") for item in content)
    return {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": content}


def _output_options(fields: Fields) -> Fields:
    """The fields for the effort, the thinking budget and the answer's format."""
    config = None
    if "output_config" in fields:
        config = decode_field(fields["output_config"], _OutputConfig | None)
    chat = encode_fields(reasoning_effort=config.effort if config else None)
    if config and config.format and config.format.schema:
        kind = config.format.type
        schema = {"name": kind, "schema": config.format.schema}
        chat |= encode_fields(response_format={"type": kind, "json_schema": schema})
    thinking = None
    if "thinking" in fields:
        thinking = decode_field(fields["thinking"], _Thinking | None)
    if thinking is None or thinking.type == "adaptive":
        return chat
    if thinking.type == "disabled":
        raise Untranslatable("no-thinking")  # unknown how the engine disables reasoning
    if thinking.type != "enabled" or not _is_budget_allowed(thinking.budget_tokens, fields):
        raise Untranslatable("unreadable")
    return chat | encode_fields(thinking_token_budget=thinking.budget_tokens)


def _is_budget_allowed(budget: int | None, fields: Fields) -> bool:
    """True if the engine accepts this thinking budget."""
    return budget is not None and 1024 <= budget < int(decode_field(fields["max_tokens"], int))


def _tool_fields(fields: Fields) -> Fields:
    tools = decode_field(fields["tools"], list[_Tool] | None) if "tools" in fields else None
    choice = None
    if "tool_choice" in fields:
        choice = decode_field(fields["tool_choice"], _ToolChoice | None)
    if not tools:
        if choice is not None and choice.type not in ("auto", "none"):
            raise Untranslatable("unreadable")
        return {}
    chat = encode_fields(tools=[_function_tool(tool) for tool in tools], tool_choice="auto")
    if choice is not None:
        chosen: Any = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
        if choice.type == "tool" and choice.name:
            chosen = {"type": "function", "function": {"name": choice.name}}
        if chosen is None:
            raise Untranslatable("unreadable")
        parallel = not choice.disable_parallel_tool_use
        chat |= encode_fields(tool_choice=chosen, parallel_tool_calls=parallel)
    return chat


def _function_tool(tool: _Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema | {"type": tool.input_schema.get("type", "object")},
        "strict": tool.strict,
        "defer_loading": tool.defer_loading,
    }
    return {"type": "function", "function": function}
