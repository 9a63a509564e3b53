"""What a probe gets: a request to /v1/completions, answered at once with a trial answer."""

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
    """A request to /v1/completions: the trial answer, cut as the request wants it."""

    response_id: str
    body: Mapping[str, Any]
    prompts: list[list[int]]

    @classmethod
    def parse(cls, body: Mapping[str, Any], response_id: str) -> CompletionRequest:
        prompt = body.get("prompt")
        if not prompt:
            what = "Either prompt or prompt_embeds must be provided and non-empty."
            raise RequestRefused(400, what, param="prompt")
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
        choices = [
            self._choice(prompt, *trial) for prompt, trial in zip(self.prompts, trials, strict=True)
        ]
        said = sum(len(choice["tokens"]) for choice in choices)
        asked = sum(len(prompt) for prompt in self.prompts)
        hit = len(self.prompts[-1]) // 16 * 16
        if stream:
            wanted = (self.body.get("stream_options") or {}).get("include_usage")
            used = wire.usage_object(asked, said, None, {"cached_tokens": hit}, with_nulls=False)
            return wire.completion_events(
                self.response_id, model, choices[0], used if wanted else None
            )
        cached = {"cached_tokens": hit, "created_cache_tokens": None, "multimodal_tokens": None}
        used = wire.usage_object(asked, said, None, cached, with_nulls=True)
        asks = (self.body.get("kv_transfer_params") or {}).get("hidden_states")
        transferred = (
            {"hidden_states": hidden_states} if asks and hidden_states is not None else None
        )
        return [wire.completion_document(self.response_id, model, choices, used, transferred)]

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
        likely = tokens[0]
        if only := body.get("allowed_token_ids"):
            tokens, text, finish = [only[0]], v.TOKEN_TEXTS.get(only[0], ""), "length"
        ids = bool(body.get("return_token_ids"))
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
                most_probable=likely if only else None,
                as_ids=bool(body.get("return_tokens_as_token_ids")),
            ),
            "finish_reason": finish,
            "stop_reason": stop if finish == "stop" else None,
            "token_ids": tokens if ids else None,
            "prompt_token_ids": prompt if ids else None,
        }


def _apply_stop_strings(
    tokens: list[int], stops: str | list[str] | None
) -> tuple[str | None, list[int]]:
    """The stop string that ends these tokens first, and the tokens up to the one that held it."""
    stops = [stops] if isinstance(stops, str) else stops or []
    text = ""
    for count, token in enumerate(tokens, start=1):
        text += v.TOKEN_TEXTS.get(token, "") if token != v.IM_END else ""
        for stop in stops:
            if stop in text:
                return stop, tokens[:count]
    return None, tokens
