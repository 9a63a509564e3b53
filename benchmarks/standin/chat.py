"""A chat request, read: the prompt's ids, what the model will say, and the unstreamed answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.standin import vocabulary as v
from benchmarks.standin import wire_format as wire
from benchmarks.standin.scenario import Scenario

__all__ = ["ChatRequest", "RequestRefused", "make_delta"]


class RequestRefused(Exception):
    """The request gets an error body in place of an answer."""

    def __init__(
        self, status: int, message: str, kind: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = wire.error_body(status, message, kind, param)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat request, read: all that the model will say is known at once."""

    response_id: str
    body: Mapping[str, Any]
    scenario: Scenario
    prompt_ids: list[int]
    has_prompt_ids: bool  # the prompt's ids came with the request
    starts_in_trace: bool  # the prompt ends within the think block
    output_ids: list[int]
    finish_reason: str

    @classmethod
    def parse(
        cls, body: Mapping[str, Any], response_id: str, scenario: Scenario, max_model_len: int
    ) -> ChatRequest:
        if not isinstance(body.get("messages"), list):
            missing = {"type": "missing", "loc": "body.messages", "msg": "Field required"}
            missing["input"] = f"<dict of {len(body)} items>"
            what = f"1 validation error:\n  {missing}"
            raise RequestRefused(400, what, "Bad Request", "body.messages")
        given = None if scenario.ignore_prompt_ids else _requested_prompt_ids(body)
        prompt = given or _apply_chat_template(body, writes_marker=scenario.writes_marker)
        thinking = _is_trace_open(prompt)
        output = scenario.output_ids(starts_in_trace=thinking, trace_count=prompt.count(v.THINK))
        limit = _max_output_tokens(body, len(prompt), max_model_len)
        finish = "stop" if len(output) <= limit else "length"
        continued = given is not None
        return cls(response_id, body, scenario, prompt, continued, thinking, output[:limit], finish)

    def usage(
        self,
        output_tokens: int,
        reasoning_tokens: int,
        *,
        with_nulls: bool,
        with_cached: bool = True,
    ) -> dict[str, Any]:
        if self.has_prompt_ids and not self.starts_in_trace:
            reasoning_tokens = max(
                output_tokens - 1, 0
            )  # vLLM's think-first parsers miscount here: so do we
        hit = len(self.prompt_ids) // 16 * 16 if self.has_prompt_ids else 0
        details: dict[str, int | None] = {"cached_tokens": hit, "created_cache_tokens": 0}
        if with_nulls:
            details["multimodal_tokens"] = None
        return wire.usage_object(
            len(self.prompt_ids),
            output_tokens,
            reasoning_tokens,
            details if with_cached else None,
            with_nulls=with_nulls,
        )

    def chunks(self) -> Iterator[tuple[int, ...]]:
        """The output as chunks."""
        output, size = self.output_ids, max(self.scenario.multi, 1)
        start = 0
        if self.scenario.both_fields and v.END_THINK in output:
            end = output.index(v.END_THINK)
            edge = max(end - 1, 0)
            yield from (tuple(output[at : min(at + size, edge)]) for at in range(0, edge, size))
            start = end + 3
            yield tuple(output[edge:start])
        for at in range(start, len(output), size):
            yield tuple(output[at : at + size])

    def build_document(self, model: str) -> bytes:
        """The unstreamed answer's body."""
        delta, _, reasoned = make_delta(
            tuple(self.output_ids), in_trace=self.starts_in_trace, include_reasoning=True
        )
        reasoning, content = delta.get("reasoning"), delta.get("content")
        if self.has_prompt_ids and not self.starts_in_trace:
            reasoning, content = content, None  # what vLLM's think-first parsers do, unstreamed
        shown = self.body.get("include_reasoning", True) is not False
        ids = bool(self.body.get("return_token_ids"))
        return wire.chat_document(
            self.response_id,
            model,
            {"content": content or None, "reasoning": (reasoning or None) if shown else None},
            self.finish_reason,
            self.usage(len(self.output_ids), reasoned, with_nulls=True),
            self.output_ids if ids and shown else None,
            self.prompt_ids if ids else None,
        )


def make_delta(
    token_ids: tuple[int, ...], *, in_trace: bool, include_reasoning: bool
) -> tuple[dict[str, str], bool, int]:
    """A chunk's delta, whether the think block is open behind it, and its reasoning tokens."""
    reasoning, content, thoughts = "", "", 0
    answering = not in_trace
    for token in token_ids:
        if token == v.END_THINK:
            in_trace = False
        elif token not in (v.THINK, v.IM_END):
            if in_trace:
                reasoning += v.TOKEN_TEXTS[token]
            else:
                content += v.TOKEN_TEXTS[token]
        thoughts += in_trace
    delta = {"content": content} if content or answering else {}
    if reasoning and include_reasoning:
        delta["reasoning"] = reasoning
    return delta, in_trace, thoughts


def _apply_chat_template(body: Mapping[str, Any], *, writes_marker: bool) -> list[int]:
    """The chat template."""
    tokens: list[int] = []
    for message in body["messages"]:
        if not isinstance(message, dict) or "role" not in message:
            raise RequestRefused(
                400, "1 validation error:\n  messages", "Bad Request", "body.messages.0"
            )
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        tokens += [v.IM_START, *v.encode(f"{message['role']}\n{content}"), v.IM_END, v.NEWLINE]
    if not tokens:
        raise RequestRefused(
            400,
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        )
    tokens += [v.IM_START, *v.encode("assistant\n")]
    if (body.get("chat_template_kwargs") or {}).get("enable_thinking") is False:
        return [*tokens, v.THINK, v.BLANK_LINE, v.END_THINK, v.BLANK_LINE]
    return tokens if writes_marker else [*tokens, v.THINK, v.NEWLINE]


def _requested_prompt_ids(body: Mapping[str, Any]) -> list[int] | None:
    params = body.get("kv_transfer_params") or {}
    if "prompt_token_ids" not in params:
        return None
    if any(
        part.get("type") != "text"
        for message in body["messages"]
        if isinstance(message.get("content"), list)
        for part in message["content"]
    ):
        return None  # as vLLM: with images the messages are rendered, and nothing is said
    ids = params["prompt_token_ids"]
    if not isinstance(ids, list) or not ids or any(type(x) is not int or x < 0 for x in ids):
        where = "kv_transfer_params.prompt_token_ids"
        raise RequestRefused(
            400,
            "`kv_transfer_params['prompt_token_ids']` must be a non-empty list of non-negative "
            f"integers. (parameter={where})",
            param=where,
        )
    return ids


def _is_trace_open(prompt: list[int]) -> bool:
    for token in reversed(prompt):
        if token in (v.THINK, v.END_THINK):
            return token == v.THINK
    return True


def _max_output_tokens(body: Mapping[str, Any], prompt: int, max_model_len: int) -> int:
    if prompt >= max_model_len:
        raise RequestRefused(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt "
            f"contains at least {max_model_len + 1} input tokens, which exceeds this limit even "
            "without any output tokens. Please reduce the length of the input prompt. "
            f"(parameter=input_tokens, value={max_model_len + 1})",
            param="input_tokens",
        )
    for field in ("max_completion_tokens", "max_tokens"):
        if (asked := body.get(field)) is not None:
            if not isinstance(asked, int) or asked < 1:
                what = f"max_tokens must be at least 1, got {asked}."
                raise RequestRefused(
                    400, f"{what} (parameter=max_tokens, value={asked})", param="max_tokens"
                )
            return min(asked, max_model_len - prompt)
    return max_model_len - prompt
