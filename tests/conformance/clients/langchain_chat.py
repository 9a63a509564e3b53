"""LangChain: ChatOpenAI and ChatDeepSeek."""

from __future__ import annotations

from typing import Any, Literal

from feature import KEY, MODEL, QUESTION, URL, feature, report
from langchain_core.tools import tool
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

COMMON: Any = {"model": MODEL, "api_key": KEY, "temperature": 0, "max_tokens": 1500}
OPENAI = ChatOpenAI(base_url=f"{URL}/v1", **COMMON)
DEEPSEEK = ChatDeepSeek(api_base=f"{URL}/v1", **COMMON)
RESPONSES = ChatOpenAI(base_url=f"{URL}/v1", use_responses_api=True, **COMMON)


class Verdict(BaseModel):
    """Whether the result is even, and its size."""

    even: bool
    size: Literal["small", "large"]


@tool
def judge(even: bool) -> str:
    """Say whether the result is even."""
    return str(even)


def streamed(model: Any) -> Any:
    whole = None
    for chunk in model.stream(QUESTION, stream_usage=True):
        whole = chunk if whole is None else whole + chunk
    return whole


@feature("ChatOpenAI, invoke")
def invoke() -> Any:
    return OPENAI.invoke(QUESTION)


@feature("ChatOpenAI, stream")
def stream() -> Any:
    return streamed(OPENAI)


@feature("ChatOpenAI, batch")
def batch() -> Any:
    return OPENAI.batch([QUESTION, QUESTION], config={"max_concurrency": 1})


@feature("ChatOpenAI, a tool that must be called")
def called() -> Any:
    return OPENAI.bind_tools([judge], tool_choice="any").invoke(QUESTION)


@feature("ChatOpenAI, structured output")
def structured() -> Any:
    made = OPENAI.with_structured_output(Verdict, method="json_schema", include_raw=True)
    return made.invoke(QUESTION)


@feature("ChatOpenAI, on /v1/responses")
def on_responses() -> Any:
    return RESPONSES.invoke(QUESTION)


@feature("ChatDeepSeek, invoke")
def deepseek() -> Any:
    return DEEPSEEK.invoke(QUESTION)


@feature("ChatDeepSeek, stream")
def deepseek_stream() -> Any:
    return streamed(DEEPSEEK)


@feature("ChatDeepSeek, structured output")
def deepseek_structured() -> Any:
    made = DEEPSEEK.with_structured_output(Verdict, method="function_calling", include_raw=True)
    return made.invoke(QUESTION)


if __name__ == "__main__":
    report()
