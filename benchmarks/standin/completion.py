"""Answers probes: a request to /v1/completions gets the scenario's trial answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.standin import vocabulary as v
from benchmarks.standin import wire_format as wire
from benchmarks.standin.chat import RequestRefused

__all__ = ["CompletionRequest"]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request to /v1/completions: one choice per prompt, cut by `stop` and `max_tokens`."""

    response_id: str
    body: Mapping[str, Any]
    prompts: list[list[int]]

    @classmethod
    def parse(cls, body: Mapping[str, Any], response_id: str) -> CompletionRequest:
        """Parse a request body.

        Raises RequestRefused if it has no prompt.
        """
        prompt = body.get("prompt")
        if not prompt:
            message = "Either prompt or prompt_embeds must be provided and non-empty."
            raise RequestRefused(400, message, param="prompt")
        if isinstance(prompt, str):
            return cls(response_id, body, [v.encode(prompt)])
        if isinstance(prompt[0], int):
            return cls(response_id, body, [prompt])
        return cls(response_id, body, [v.encode(x) if isinstance(x, str) else x for x in prompt])

    def render_response(
        self,
        model: str,
        trials: list[tuple[str, float]],
        hidden_states: dict[str, Any] | None,
        *,
        stream: bool,
    ) -> list[bytes]:
        """One body, or the events of a stream.

        ``trials`` has for each prompt the trial answer and the log-probability of its tokens.
        """
        choices = [
            self._choice(prompt, *trial) for prompt, trial in zip(self.prompts, trials, strict=True)
        ]
        output_tokens = sum(len(choice["tokens"]) for choice in choices)
        prompt_tokens = sum(len(prompt) for prompt in self.prompts)
        cached_tokens = len(self.prompts[-1]) // 16 * 16
        if stream:
            include_usage = (self.body.get("stream_options") or {}).get("include_usage")
            usage = wire.usage_object(
                prompt_tokens,
                output_tokens,
                None,
                {"cached_tokens": cached_tokens},
                with_nulls=False,
            )
            return wire.completion_events(
                self.response_id, model, choices[0], usage if include_usage else None
            )
        details = {
            "cached_tokens": cached_tokens,
            "created_cache_tokens": None,
            "multimodal_tokens": None,
        }
        usage = wire.usage_object(prompt_tokens, output_tokens, None, details, with_nulls=True)
        wants_hidden_states = (self.body.get("kv_transfer_params") or {}).get("hidden_states")
        kv_transfer_params = (
            {"hidden_states": hidden_states}
            if wants_hidden_states and hidden_states is not None
            else None
        )
        return [
            wire.completion_document(self.response_id, model, choices, usage, kv_transfer_params)
        ]

    def _choice(self, prompt: list[int], trial: str, logprob: float) -> dict[str, Any]:
        body = self.body
        tokens = [*v.encode(trial), v.IM_END]
        stop, tokens = _apply_stop_strings(tokens, body.get("stop"))
        limit = 16 if body.get("max_tokens") is None else body["max_tokens"]
        finish = "stop" if len(tokens) <= limit else "length"
        tokens = tokens[:limit]
        text = v.decode([token for token in tokens if token != v.IM_END])
        if stop is not None and finish == "stop":
            text = text[: text.index(stop)]
        most_probable = tokens[0]
        if allowed := body.get("allowed_token_ids"):
            tokens, text, finish = [allowed[0]], v.TOKEN_TEXTS.get(allowed[0], ""), "length"
        include_ids = bool(body.get("return_token_ids"))
        top = body.get("logprobs")
        return {
            "tokens": tokens,
            "text": text,
            "logprobs": None
            if top is None
            else wire.completion_logprobs(
                tokens,
                logprob,
                top,
                most_probable=most_probable if allowed else None,
                as_ids=bool(body.get("return_tokens_as_token_ids")),
            ),
            "finish_reason": finish,
            "stop_reason": stop if finish == "stop" else None,
            "token_ids": tokens if include_ids else None,
            "prompt_token_ids": prompt if include_ids else None,
        }


def _apply_stop_strings(
    tokens: list[int], stops: str | list[str] | None
) -> tuple[str | None, list[int]]:
    """(stop string, tokens): the first stop string found, and the tokens up to its last one."""
    stops = [stops] if isinstance(stops, str) else stops or []
    text = ""
    for count, token in enumerate(tokens, start=1):
        text += v.TOKEN_TEXTS.get(token, "") if token != v.IM_END else ""
        for stop in stops:
            if stop in text:
                return stop, tokens[:count]
    return None, tokens
