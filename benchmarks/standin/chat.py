"""A chat request, read: the prompt's ids, what the model will say, and the unstreamed answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.standin import vocabulary as v
from benchmarks.standin import wire
from benchmarks.standin.scenario import Scenario

__all__ = ["Chat", "Refused", "delta_of"]


class Refused(Exception):
    """The request gets an error body in place of an answer."""

    def __init__(
        self, status: int, message: str, kind: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = wire.error(status, message, kind, param)


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat request, read: all that the model will say is known at once."""

    name: str
    body: Mapping[str, Any]
    scenario: Scenario
    prompt: list[int]
    continued: bool  # the prompt's ids came with the request
    thinking: bool  # the prompt ends within the think block
    output: list[int]
    finish: str

    @classmethod
    def read(
        cls, body: Mapping[str, Any], name: str, scenario: Scenario, max_model_len: int
    ) -> Chat:
        if not isinstance(body.get("messages"), list):
            missing = {"type": "missing", "loc": "body.messages", "msg": "Field required"}
            missing["input"] = f"<dict of {len(body)} items>"
            what = f"1 validation error:\n  {missing}"
            raise Refused(400, what, "Bad Request", "body.messages")
        given = None if scenario.ignore_prompt_ids else _given_ids(body)
        prompt = given or _render(body, writes_marker=scenario.writes_marker)
        thinking = _ends_in_thought(prompt)
        output = scenario.output(thinking=thinking, traces=prompt.count(v.THINK))
        limit = _limit(body, len(prompt), max_model_len)
        finish = "stop" if len(output) <= limit else "length"
        continued = given is not None
        return cls(name, body, scenario, prompt, continued, thinking, output[:limit], finish)

    def used(self, said: int, reasoned: int, *, nulls: bool, cached: bool = True) -> dict[str, Any]:
        if self.continued and not self.thinking:
            reasoned = max(said - 1, 0)  # vLLM's think-first parsers miscount here: so do we
        hit = len(self.prompt) // 16 * 16 if self.continued else 0
        details: dict[str, int | None] = {"cached_tokens": hit, "created_cache_tokens": 0}
        if nulls:
            details["multimodal_tokens"] = None
        return wire.usage(
            len(self.prompt), said, reasoned, details if cached else None, nulls=nulls
        )

    def groups(self) -> Iterator[tuple[int, ...]]:
        """The output as chunks."""
        output, size = self.output, max(self.scenario.multi, 1)
        start = 0
        if self.scenario.both_fields and v.END_THINK in output:
            end = output.index(v.END_THINK)
            edge = max(end - 1, 0)
            yield from (tuple(output[at : min(at + size, edge)]) for at in range(0, edge, size))
            start = end + 3
            yield tuple(output[edge:start])
        for at in range(start, len(output), size):
            yield tuple(output[at : at + size])

    def whole(self, model: str) -> bytes:
        """The unstreamed answer's body."""
        delta, _, reasoned = delta_of(tuple(self.output), thinking=self.thinking, shown=True)
        reasoning, content = delta.get("reasoning"), delta.get("content")
        if self.continued and not self.thinking:
            reasoning, content = content, None  # what vLLM's think-first parsers do, unstreamed
        shown = self.body.get("include_reasoning", True) is not False
        ids = bool(self.body.get("return_token_ids"))
        return wire.chat(
            self.name,
            model,
            {"content": content or None, "reasoning": (reasoning or None) if shown else None},
            self.finish,
            self.used(len(self.output), reasoned, nulls=True),
            self.output if ids and shown else None,
            self.prompt if ids else None,
        )


def delta_of(
    group: tuple[int, ...], *, thinking: bool, shown: bool
) -> tuple[dict[str, str], bool, int]:
    """A chunk's delta, whether the think block is open behind it, and its reasoning tokens."""
    reasoning, content, thoughts = "", "", 0
    answering = not thinking
    for token in group:
        if token == v.END_THINK:
            thinking = False
        elif token not in (v.THINK, v.END):
            if thinking:
                reasoning += v.PIECES[token]
            else:
                content += v.PIECES[token]
        thoughts += thinking
    delta = {"content": content} if content or answering else {}
    if reasoning and shown:
        delta["reasoning"] = reasoning
    return delta, thinking, thoughts


def _render(body: Mapping[str, Any], *, writes_marker: bool) -> list[int]:
    """The chat template."""
    tokens: list[int] = []
    for message in body["messages"]:
        if not isinstance(message, dict) or "role" not in message:
            raise Refused(400, "1 validation error:\n  messages", "Bad Request", "body.messages.0")
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        tokens += [v.START, *v.encode(f"{message['role']}\n{content}"), v.END, v.NEWLINE]
    if not tokens:
        raise Refused(
            400,
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        )
    tokens += [v.START, *v.encode("assistant\n")]
    if (body.get("chat_template_kwargs") or {}).get("enable_thinking") is False:
        return [*tokens, v.THINK, v.BLANK, v.END_THINK, v.BLANK]
    return tokens if writes_marker else [*tokens, v.THINK, v.NEWLINE]


def _given_ids(body: Mapping[str, Any]) -> list[int] | None:
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
        raise Refused(
            400,
            "`kv_transfer_params['prompt_token_ids']` must be a non-empty list of non-negative "
            f"integers. (parameter={where})",
            param=where,
        )
    return ids


def _ends_in_thought(prompt: list[int]) -> bool:
    for token in reversed(prompt):
        if token in (v.THINK, v.END_THINK):
            return token == v.THINK
    return True


def _limit(body: Mapping[str, Any], prompt: int, max_model_len: int) -> int:
    if prompt >= max_model_len:
        raise Refused(
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
                raise Refused(
                    400, f"{what} (parameter=max_tokens, value={asked})", param="max_tokens"
                )
            return min(asked, max_model_len - prompt)
    return max_model_len - prompt
