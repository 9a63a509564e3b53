"""LiteLLM's client, with its provider for a vLLM of one's own."""

from __future__ import annotations

from typing import Any

import litellm
from feature import KEY, MODEL, QUESTION, URL, feature, report
from pydantic import BaseModel

litellm.suppress_debug_info = True
litellm.telemetry = False
HOSTED: Any = {"model": f"hosted_vllm/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY}
ASK: Any = {
    **HOSTED,
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "max_tokens": 1500,
    "num_retries": 0,
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "judge",
        "description": "Say whether the result is even.",
        "parameters": {
            "type": "object",
            "properties": {"even": {"type": "boolean"}},
            "required": ["even"],
        },
    },
}
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n"


class Verdict(BaseModel):
    even: bool


@feature("completion")
def completion() -> Any:
    return litellm.completion(**ASK)


@feature("completion, streamed with usage")
def streamed() -> Any:
    stream = litellm.completion(**ASK, stream=True, stream_options={"include_usage": True})
    return {"stream": list(stream)}


@feature("completion, stream put together")
def built() -> Any:
    return litellm.stream_chunk_builder(list(litellm.completion(**ASK, stream=True)))


@feature("completion, a tool that must be called")
def tool() -> Any:
    return litellm.completion(**ASK, tools=[TOOL], tool_choice="required")


@feature("completion, structured output")
def structured() -> Any:
    return litellm.completion(**ASK, response_format=Verdict)


@feature("text completion")
def text() -> Any:
    return litellm.text_completion(**HOSTED, prompt=PROMPT, temperature=0, max_tokens=1500)


@feature("responses")
def responses() -> Any:
    return litellm.responses(**HOSTED, input=QUESTION, temperature=0, max_output_tokens=1500)


@feature("error, unknown model", "error")
def unknown_model() -> Any:
    return litellm.completion(**ASK | {"model": "hosted_vllm/nobody"})


if __name__ == "__main__":
    report()
