"""openai-python, synchronous and not."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
from feature import KEY, MODEL, QUESTION, URL, feature, report
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
ASK: Any = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 1500}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "judge",
        "description": "Say whether the result is even.",
        "parameters": {
            "type": "object",
            "properties": {"even": {"type": "boolean"}},
            "required": ["even"],
            "additionalProperties": False,
        },
    },
}
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Verdict(BaseModel):
    even: bool
    size: Literal["small", "large"]


chat = client.chat.completions


def streamed(stream: Any) -> Any:
    return {"stream": list(stream)}


@feature("models", "plain")
def models() -> Any:
    return client.models.list().data


@feature("model by id", "error")
def model() -> Any:
    """vLLM has no such route."""
    return client.models.retrieve(MODEL)


@feature("chat")
def chat_whole() -> Any:
    return chat.create(**ASK)


@feature("chat, streamed")
def chat_streamed() -> Any:
    return streamed(chat.create(**ASK, stream=True))


@feature("chat, streamed with usage")
def chat_usage() -> Any:
    return streamed(chat.create(**ASK, stream=True, stream_options={"include_usage": True}))


@feature("chat, streamed with usage on every chunk")
def chat_usage_each() -> Any:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    events = list(chat.create(**ASK, stream=True, stream_options=options))
    return {"text": "".join(c.delta.content or "" for e in events for c in e.choices),
            "usage": events[-1].usage}  # fmt: skip


@feature("chat, asynchronous client")
def chat_async() -> Any:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY) as there:
            stream = await there.chat.completions.create(**ASK, stream=True)
            return {"stream": [event async for event in stream]}

    return asyncio.run(ask())


@feature("chat, stream helper")
def chat_helper() -> Any:
    with chat.stream(**ASK) as events:
        kinds = sorted({event.type for event in events})
        return {"kinds": kinds, "completion": events.get_final_completion()}


@feature("chat, raw response")
def chat_raw() -> Any:
    raw = chat.with_raw_response.create(**ASK)
    return {"type": raw.headers["content-type"], "completion": raw.parse()}


@feature("chat, whole conversation")
def chat_history() -> Any:
    first = chat.create(**ASK).choices[0].message
    turns = [*MESSAGES, first.model_dump(), {"role": "user", "content": QUESTION}]
    return chat.create(**ASK | {"messages": turns})


@feature("chat, n = 2")
def chat_n() -> Any:
    return chat.create(**ASK | {"temperature": 0.6}, seed=7, n=2)


@feature("chat, log-probabilities")
def chat_logprobs() -> Any:
    return chat.create(**ASK, logprobs=True, top_logprobs=2)


@feature("chat, log-probabilities streamed")
def chat_logprobs_streamed() -> Any:
    return streamed(chat.create(**ASK, logprobs=True, top_logprobs=2, stream=True))


@feature("chat, stop")
def chat_stop() -> Any:
    return chat.create(**ASK, stop=["\\boxed"])


@feature("chat, stop, streamed with usage")
def chat_stop_streamed() -> Any:
    return streamed(
        chat.create(**ASK, stop=["\\boxed"], stream=True, stream_options={"include_usage": True})
    )


@feature("chat, seed and penalties")
def chat_seed() -> Any:
    return chat.create(
        **ASK, seed=7, frequency_penalty=0.01, presence_penalty=0.01, logit_bias={"3": -1}
    )


@feature("chat, max_completion_tokens")
def chat_limit() -> Any:
    limit = {"max_tokens": openai.NOT_GIVEN, "max_completion_tokens": 1200}
    return chat.create(**ASK | limit)


@feature("chat, cut off by max_tokens", "plain")
def chat_length() -> Any:
    return chat.create(**ASK | {"max_tokens": 12})


@feature("chat, reasoning_effort")
def chat_effort() -> Any:
    return chat.create(**ASK, reasoning_effort="high")


@feature("chat, reasoning hidden")
def chat_hidden() -> Any:
    return chat.create(**ASK, extra_body={"include_reasoning": False})


@feature("chat, thinking switched off", "plain")
def chat_unthinking() -> Any:
    return chat.create(**ASK, extra_body={"chat_template_kwargs": {"enable_thinking": False}})


@feature("chat, fields of vLLM's own")
def chat_vllm() -> Any:
    extra = {"top_k": 1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    return chat.create(**ASK, extra_body=extra)


@feature("chat, parts of text")
def chat_parts() -> Any:
    parts = [{"type": "text", "text": QUESTION}]
    return chat.create(**ASK | {"messages": [{"role": "user", "content": parts}]})


@feature("chat, an image", "error")
def chat_image() -> Any:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    parts = [{"type": "text", "text": QUESTION}, image]
    return chat.create(**ASK | {"messages": [{"role": "user", "content": parts}]})


@feature("tools, not called")
def tools_auto() -> Any:
    return chat.create(**ASK, tools=[TOOL])


@feature("tools, required")
def tools_required() -> Any:
    return chat.create(**ASK, tools=[TOOL], tool_choice="required")


@feature("tools, required, streamed")
def tools_required_streamed() -> Any:
    return streamed(chat.create(**ASK, tools=[TOOL], tool_choice="required", stream=True))


@feature("tools, named")
def tools_named() -> Any:
    named: Any = {"type": "function", "function": {"name": "judge"}}
    return chat.create(**ASK, tools=[TOOL], tool_choice=named)


@feature("tools, a result sent back")
def tools_result() -> Any:
    call = chat.create(**ASK, tools=[TOOL], tool_choice="required").choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "true"}
    turns = [*MESSAGES, call.model_dump(), result]
    return chat.create(**ASK | {"messages": turns}, tools=[TOOL])


@feature("structured output, parse")
def parse() -> Any:
    return chat.parse(**ASK, response_format=Verdict)


@feature("structured output, streamed parse")
def parse_streamed() -> Any:
    with chat.stream(**ASK, response_format=Verdict) as events:
        return events.get_final_completion()


@feature("structured output, JSON schema")
def json_schema() -> Any:
    schema: Any = {"name": "verdict", "schema": Verdict.model_json_schema()}
    return chat.create(**ASK, response_format={"type": "json_schema", "json_schema": schema})


@feature("structured output, vLLM's choice")
def choice() -> Any:
    return chat.create(**ASK, extra_body={"structured_outputs": {"choice": ["even", "odd"]}})


PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n"
TEXT: Any = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 1500}


@feature("completions")
def completions() -> Any:
    return client.completions.create(**TEXT)


@feature("completions, streamed")
def completions_streamed() -> Any:
    return streamed(client.completions.create(**TEXT, stream=True))


@feature("completions, echo and log-probabilities", "plain")
def completions_echo() -> Any:
    return client.completions.create(**TEXT | {"max_tokens": 1}, echo=True, logprobs=1)


@feature("completions, two prompts")
def completions_two() -> Any:
    return client.completions.create(**TEXT | {"prompt": [PROMPT, PROMPT]})


ANSWER: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 1500}


@feature("responses")
def responses() -> Any:
    return client.responses.create(**ANSWER)


@feature("responses, streamed")
def responses_streamed() -> Any:
    return streamed(client.responses.create(**ANSWER, stream=True))


@feature("responses, instructions and effort")
def responses_effort() -> Any:
    return client.responses.create(**ANSWER, instructions="Be brief.", reasoning={"effort": "low"})


@feature("responses, structured output, parse")
def responses_parse() -> Any:
    return client.responses.parse(**ANSWER, text_format=Verdict)


@feature("responses, conversation sent back")
def responses_history() -> Any:
    first = client.responses.create(**ANSWER)
    turns: Any = [{"role": "user", "content": QUESTION}]
    turns += [item.model_dump(exclude_none=True) for item in first.output]
    return client.responses.create(**ANSWER | {"input": [*turns, *turns[:1]]})


@feature("responses, one that is not stored", "error")
def responses_unknown() -> Any:
    return client.responses.retrieve("resp_unknown")


@feature("error, unknown model", "error")
def unknown_model() -> Any:
    return chat.create(**ASK | {"model": "nobody"})


@feature("error, no messages", "error")
def no_messages() -> Any:
    return chat.create(**ASK | {"messages": []})


@feature("error, a field of the wrong type", "error")
def wrong_type() -> Any:
    return chat.create(**ASK | {"temperature": "warm"})


@feature("error, context too long", "error")
def too_long() -> Any:
    return chat.create(**ASK | {"messages": [{"role": "user", "content": "9" * 9000}]})


@feature("embeddings", "error")
def embeddings() -> Any:
    return client.embeddings.create(model=MODEL, input=QUESTION)


if __name__ == "__main__":
    report()
