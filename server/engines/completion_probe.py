"""Probes through vLLM's ``/v1/completions``: request, reply, and the score of an end marker.

The gateway and the recorder of the laboratory both probe through this module, each with an HTTP
client of its own, so a recording holds what the gateway would have seen.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from adjourn.policies.events import Probe
from adjourn.policies.evidence.hidden_states import HiddenStates
from adjourn.server.api.completions import COMPLETIONS_PATH
from adjourn.server.engines.adapter import ProbeResponse
from adjourn.server.upstream.client import BadReply

__all__ = ["COMPLETIONS_PATH", "PostCompletion", "run_probe"]

PostCompletion = Callable[[bytes], Awaitable[bytes]]
"""Posts a JSON body to COMPLETIONS_PATH and returns the content of the reply; raises if the engine
does not answer with status 200."""


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] = []


class _CompletionChoice(msgspec.Struct):
    text: str
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _PromptTokenDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _PromptTokenDetails | None = None


class _HiddenStatesPayload(msgspec.Struct):
    layers: list[int]
    width: int
    dtype: Literal["bfloat16"]
    data: bytes


class _KVTransferParams(msgspec.Struct):
    hidden_states: _HiddenStatesPayload | None = None


class _Completion(msgspec.Struct):
    choices: list[_CompletionChoice]
    usage: _Usage = msgspec.field(default_factory=_Usage)
    kv_transfer_params: _KVTransferParams | None = None


# By their texts, two tokens with the same text would be one key of ``top_logprobs``.
_TOKENS_AS_IDS = {"return_tokens_as_token_ids": True}
_decode_completion = msgspec.json.Decoder(_Completion).decode


async def run_probe(
    post: PostCompletion,
    model: str,
    prompt: Sequence[int],
    probe: Probe,
    extra: Mapping[str, Any],
    ending_ids: Sequence[int] = (),
) -> ProbeResponse:
    """Generate greedily after the ids ``prompt``; with ``ending_ids``, score those ids instead.

    ``extra``: further fields of each request. Each of ``ending_ids`` is scored by a request of its
    own. Raises BadReply where the reply has no log-probabilities or lacks the hidden states that
    ``probe`` asks for.
    """
    fields = {
        **extra,
        "model": model,
        "prompt": prompt,
        "max_tokens": probe.max_tokens,
        "temperature": 0,
        "logprobs": probe.top_logprobs,
    }
    if ending_ids:
        scores = (
            _score_token(post, [*prompt, *ending_ids[:n]], token, fields)
            for n, token in enumerate(ending_ids)
        )
        return _merge_scores(await asyncio.gather(*scores))
    if probe.top_logprobs > 1 and probe.max_tokens == 1:
        fields |= _TOKENS_AS_IDS  # a longer probe is a trial answer, which is read from its text
    if probe.hidden_states:
        fields["kv_transfer_params"] = {"hidden_states": True}
    content = await post(msgspec.json.encode(fields))
    return _parse_completion(content, hidden_states=probe.hidden_states)


async def _score_token(
    post: PostCompletion, prompt: Sequence[int], token: int, fields: Mapping[str, Any]
) -> ProbeResponse:
    """The log-probability of ``token`` after these ids, and that of the most probable token.

    The request allows ``token`` only; vLLM still reports its log-probability before that
    restriction. We avoid vLLM's field for this purpose, ``logprob_token_ids``: it removes the
    ``top_logprobs`` of all other requests in the same step.
    """
    only = {"prompt": prompt, "max_tokens": 1, "allowed_token_ids": [token]}
    content = await post(msgspec.json.encode({**fields, **_TOKENS_AS_IDS, **only}))
    response = _parse_completion(content)
    if (
        response.tokens != (f"token_id:{token}",)
        or not response.top_logprobs
        or not response.top_logprobs[0]
    ):
        raise BadReply("the reply to a probe has no score of the requested token")
    return replace(
        response, logprobs=response.top_logprobs[0][:1], end_logprob=response.logprobs[0]
    )


def _parse_completion(content: bytes, *, hidden_states: bool = False) -> ProbeResponse:
    try:
        reply = _decode_completion(content)
        choice = reply.choices[0]
    except (msgspec.MsgspecError, IndexError) as error:
        raise BadReply(f"the reply to a probe cannot be read: {error}") from None
    logprobs = choice.logprobs
    if (
        logprobs is None
        or None in logprobs.token_logprobs
        or len(logprobs.tokens) != len(logprobs.token_logprobs)
    ):
        raise BadReply("the reply to a probe has no log-probabilities")
    details = reply.usage.prompt_tokens_details
    return ProbeResponse(
        text=choice.text,
        tokens=tuple(logprobs.tokens),
        logprobs=tuple(p for p in logprobs.token_logprobs if p is not None),
        finished=choice.finish_reason == "stop",
        prefilled=reply.usage.prompt_tokens - ((details.cached_tokens if details else None) or 0),
        decoded=len(logprobs.tokens),
        top_logprobs=tuple(
            tuple(sorted((top or {}).values(), reverse=True)) for top in logprobs.top_logprobs
        ),
        hidden_states=_parse_hidden_states(reply.kv_transfer_params) if hidden_states else None,
    )


def _parse_hidden_states(params: _KVTransferParams | None) -> HiddenStates:
    """Raises BadReply."""
    if params is None or (payload := params.hidden_states) is None:
        raise BadReply("the reply to a probe has no hidden states: see docs/engines.md")
    try:
        return HiddenStates(tuple(payload.layers), payload.width, payload.data)
    except ValueError as error:
        raise BadReply(f"the reply to a probe cannot be read: {error}") from None


def _merge_scores(scores: Sequence[ProbeResponse]) -> ProbeResponse:
    """The scores of consecutive tokens as one response; ``end_logprob`` is their sum."""
    return replace(
        scores[0],
        prefilled=sum(score.prefilled for score in scores),
        decoded=len(scores),
        end_logprob=math.fsum(score.end_logprob or 0.0 for score in scores),
    )
