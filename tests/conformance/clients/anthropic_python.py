"""The Anthropic SDK, on /v1/messages."""

from __future__ import annotations

from typing import Any

import anthropic
from feature import KEY, MODEL, QUESTION, URL, feature, report

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
ASK: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1500}
TOOL: Any = {
    "name": "judge",
    "description": "Say whether the result is even.",
    "input_schema": {
        "type": "object",
        "properties": {"even": {"type": "boolean"}},
        "required": ["even"],
    },
}


@feature("messages")
def whole() -> Any:
    return client.messages.create(**ASK)


@feature("messages, streamed")
def streamed() -> Any:
    return {"stream": list(client.messages.create(**ASK, stream=True))}


@feature("messages, stream helper")
def helper() -> Any:
    with client.messages.stream(**ASK) as stream:
        return stream.get_final_message()


@feature("messages, system and parts of text")
def system() -> Any:
    turns = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    return client.messages.create(**ASK | {"messages": turns}, system="Be brief.")


@feature("messages, thinking with a budget")
def budget() -> Any:
    return client.messages.create(**ASK, thinking={"type": "enabled", "budget_tokens": 1024})


@feature("messages, conversation sent back")
def history() -> Any:
    first = client.messages.create(**ASK)
    said = {"role": "assistant", "content": [b.model_dump() for b in first.content]}
    return client.messages.create(**ASK | {"messages": [*MESSAGES, said, *MESSAGES]})


@feature("messages, a tool that must be called")
def tool() -> Any:
    return client.messages.create(**ASK, tools=[TOOL], tool_choice={"type": "any"})


@feature("messages, tokens counted", "plain")
def count() -> Any:
    return client.messages.count_tokens(model=MODEL, messages=MESSAGES)


@feature("error, unknown model", "error")
def unknown_model() -> Any:
    return client.messages.create(**ASK | {"model": "nobody"})


if __name__ == "__main__":
    report()
