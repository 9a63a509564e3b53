"""Parses a chat request into prompt ids and output ids, and builds the unstreamed response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.standin import vocabulary as v
from benchmarks.standin import wire_format as wire
from benchmarks.standin.scenario import Scenario

__all__ = ["ChatRequest", "RequestRefused", "make_delta"]


class RequestRefused(Exception):
    """The request gets an HTTP error with the body `body`."""

    def __init__(
        self, status: int, message: str, kind: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = wire.error_body(status, message, kind, param)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed chat request with all tokens that the model will generate."""

    response_id: str
    body: Mapping[str, Any]
    scenario: Scenario
    prompt_ids: list[int]
    has_prompt_ids: bool  # the request contains the prompt's ids
    starts_in_trace: bool  # the prompt ends inside the think block
    output_ids: list[int]
    finish_reason: str

    @classmethod
    def parse(
        cls, body: Mapping[str, Any], response_id: str, scenario: Scenario, max_model_len: int
    ) -> ChatRequest:
        """Parse a request body.

        Raises RequestRefused for the errors that vLLM reports.
        """
        if not isinstance(body.get("messages"), list):
            missing = {"type": "missing", "loc": "body.messages", "msg": "Field required"}
            missing["input"] = f"<dict of {len(body)} items>"
            message = f"1 validation error:\n  {missing}"
            raise RequestRefused(400, message, "Bad Request", "body.messages")
        given = None if scenario.ignore_prompt_ids else _requested_prompt_ids(body)
        prompt = given or _apply_chat_template(body, writes_marker=scenario.writes_marker)
        in_trace = _is_trace_open(prompt)
        output = scenario.output_ids(starts_in_trace=in_trace, trace_count=prompt.count(v.THINK))
        limit = _max_output_tokens(body, len(prompt), max_model_len)
        finish = "stop" if len(output) <= limit else "length"
        has_ids = given is not None
        return cls(response_id, body, scenario, prompt, has_ids, in_trace, output[:limit], finish)

    def usage(
        self,
        output_tokens: int,
        reasoning_tokens: int,
        *,
        with_nulls: bool,
        with_cached: bool = True,
    ) -> dict[str, Any]:
        """The usage object; prefix-cache hits are reported only if the request has prompt ids."""
        if self.has_prompt_ids and not self.starts_in_trace:
            # vLLM's parsers that assume an open trace miscount here; the stand-in does the same.
            reasoning_tokens = max(output_tokens - 1, 0)
        cached = len(self.prompt_ids) // 16 * 16 if self.has_prompt_ids else 0
        details: dict[str, int | None] = {"cached_tokens": cached, "created_cache_tokens": 0}
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
        """The output's token ids, chunk by chunk."""
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
        """The body of the unstreamed response."""
        delta, _, reasoning_tokens = make_delta(
            tuple(self.output_ids), in_trace=self.starts_in_trace, include_reasoning=True
        )
        reasoning, content = delta.get("reasoning"), delta.get("content")
        if self.has_prompt_ids and not self.starts_in_trace:
            reasoning, content = content, None  # as vLLM's parsers do that assume an open trace
        include_reasoning = self.body.get("include_reasoning", True) is not False
        include_ids = bool(self.body.get("return_token_ids"))
        return wire.chat_document(
            self.response_id,
            model,
            {
                "content": content or None,
                "reasoning": (reasoning or None) if include_reasoning else None,
            },
            self.finish_reason,
            self.usage(len(self.output_ids), reasoning_tokens, with_nulls=True),
            self.output_ids if include_ids and include_reasoning else None,
            self.prompt_ids if include_ids else None,
        )


def make_delta(
    token_ids: tuple[int, ...], *, in_trace: bool, include_reasoning: bool
) -> tuple[dict[str, str], bool, int]:
    """(delta, in trace after these tokens, reasoning tokens) of one chunk."""
    reasoning, content, reasoning_tokens = "", "", 0
    answering = not in_trace
    for token in token_ids:
        if token == v.END_THINK:
            in_trace = False
        elif token not in (v.THINK, v.IM_END):
            if in_trace:
                reasoning += v.TOKEN_TEXTS[token]
            else:
                content += v.TOKEN_TEXTS[token]
        reasoning_tokens += in_trace
    delta = {"content": content} if content or answering else {}
    if reasoning and include_reasoning:
        delta["reasoning"] = reasoning
    return delta, in_trace, reasoning_tokens


def _apply_chat_template(body: Mapping[str, Any], *, writes_marker: bool) -> list[int]:
    """The ids of the messages under a template like Qwen3's.

    Unless the model writes the start marker itself, the prompt ends with it.
    """
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
        return None  # vLLM silently ignores the ids if a message has images; so does the stand-in
    ids = params["prompt_token_ids"]
    if not isinstance(ids, list) or not ids or any(type(x) is not int or x < 0 for x in ids):
        parameter = "kv_transfer_params.prompt_token_ids"
        raise RequestRefused(
            400,
            "`kv_transfer_params['prompt_token_ids']` must be a non-empty list of non-negative "
            f"integers. (parameter={parameter})",
            param=parameter,
        )
    return ids


def _is_trace_open(prompt: list[int]) -> bool:
    for token in reversed(prompt):
        if token in (v.THINK, v.END_THINK):
            return token == v.THINK
    return True


def _max_output_tokens(body: Mapping[str, Any], prompt_tokens: int, max_model_len: int) -> int:
    if prompt_tokens >= max_model_len:
        raise RequestRefused(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt "
            f"contains at least {max_model_len + 1} input tokens, which exceeds this limit even "
            "without any output tokens. Please reduce the length of the input prompt. "
            f"(parameter=input_tokens, value={max_model_len + 1})",
            param="input_tokens",
        )
    for field in ("max_completion_tokens", "max_tokens"):
        if (requested := body.get(field)) is not None:
            if not isinstance(requested, int) or requested < 1:
                message = f"max_tokens must be at least 1, got {requested}."
                raise RequestRefused(
                    400, f"{message} (parameter=max_tokens, value={requested})", param="max_tokens"
                )
            return min(requested, max_model_len - prompt_tokens)
    return max_model_len - prompt_tokens
