"""vLLM. All of it is stock, with no flag of the operator's but the reasoning parser; hidden states
alone need a connector, and flags that bring it in."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from adjourn.policies.events import Probe
from adjourn.policies.evidence.hidden_states import HiddenStates
from adjourn.server.engines.adapter import Adapter, Headers, ProbeResponse
from adjourn.server.upstream.client import BadReply, EngineClient

__all__ = ["VLLM", "fetch_version_from"]


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


_TOKENS_AS_IDS = {
    "return_tokens_as_token_ids": True
}  # by their text, tokens that look alike would be one
_decode_completion = msgspec.json.Decoder(_Completion).decode


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Version(msgspec.Struct):
    version: str


async def fetch_version_from(engine: EngineClient, path: str, headers: Headers) -> str | None:
    """The version that stands at ``path``; None where there is no such thing."""
    status, content = await engine.get(path, headers)
    try:
        return msgspec.json.decode(content, type=_Version).version if status == 200 else None
    except msgspec.MsgspecError:
        return None


class VLLM(Adapter):
    name = "vllm"
    supports_translation = True

    async def fetch_version(self, headers: Headers) -> str | None:
        return await fetch_version_from(self.engine, "/version", headers)

    async def probe(
        self,
        model: str,
        prompt: Sequence[int],
        probe: Probe,
        headers: Headers,
        extra: Mapping[str, Any],
        ending_ids: Sequence[int] = (),
    ) -> ProbeResponse:
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
                self._score_token([*prompt, *ending_ids[:n]], token, fields, headers)
                for n, token in enumerate(ending_ids)
            )
            return _merge_scores(await asyncio.gather(*scores))
        if probe.top_logprobs > 1 and probe.max_tokens == 1:
            fields |= _TOKENS_AS_IDS  # an answer is read from its text
        if probe.hidden_states:
            fields["kv_transfer_params"] = {"hidden_states": True}
        content = await self.engine.post("/v1/completions", msgspec.json.encode(fields), headers)
        return _parse_completion(content, hidden_states=probe.hidden_states)

    async def _score_token(
        self, prompt: Sequence[int], token: int, fields: Mapping[str, Any], headers: Headers
    ) -> ProbeResponse:
        """The log-probability of ``token`` behind these ids, and that of the most probable one.

        It is made the only choice, which its raw log-probability does not tell. vLLM's field for
        it, ``logprob_token_ids``, takes every other request's ``top_logprobs`` away in that step.
        """
        only = {"prompt": prompt, "max_tokens": 1, "allowed_token_ids": [token]}
        body = msgspec.json.encode({**fields, **_TOKENS_AS_IDS, **only})
        drawn = _parse_completion(await self.engine.post("/v1/completions", body, headers))
        if (
            drawn.tokens != (f"token_id:{token}",)
            or not drawn.top_logprobs
            or not drawn.top_logprobs[0]
        ):
            raise BadReply("a probe's reply does not score the token it was asked about")
        return replace(drawn, logprobs=drawn.top_logprobs[0][:1], end_logprob=drawn.logprobs[0])

    def hidden_state_flags(self, layers: Iterable[int]) -> str:
        chosen = {"hf_config": {"eagle_aux_hidden_state_layer_ids": sorted(layers)}}
        speculative = {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": chosen,
        }
        transfer = {
            "kv_connector": "HiddenStatesConnector",
            "kv_connector_module_path": "adjourn_hidden_states",
            "kv_role": "kv_producer",
        }
        return (
            f"--speculative-config '{msgspec.json.encode(speculative).decode()}' "
            f"--kv-transfer-config '{msgspec.json.encode(transfer).decode()}'"
        )

    async def tokenize(self, model: str, text: str, headers: Headers) -> list[int]:
        body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
        content = await self.engine.post("/tokenize", body, headers)
        try:
            return msgspec.json.decode(content, type=_Tokens).tokens
        except msgspec.MsgspecError as error:
            raise BadReply(f"/tokenize answered with something else: {error}") from None


def _parse_completion(content: bytes, *, hidden_states: bool = False) -> ProbeResponse:
    try:
        reply = _decode_completion(content)
        choice = reply.choices[0]
    except (msgspec.MsgspecError, IndexError) as error:
        raise BadReply(f"a probe's reply could not be read: {error}") from None
    drawn = choice.logprobs
    if (
        drawn is None
        or None in drawn.token_logprobs
        or len(drawn.tokens) != len(drawn.token_logprobs)
    ):
        raise BadReply("a probe's reply has no log-probabilities")
    details = reply.usage.prompt_tokens_details
    return ProbeResponse(
        text=choice.text,
        tokens=tuple(drawn.tokens),
        logprobs=tuple(p for p in drawn.token_logprobs if p is not None),
        finished=choice.finish_reason == "stop",
        prefilled=reply.usage.prompt_tokens - ((details.cached_tokens if details else None) or 0),
        decoded=len(drawn.tokens),
        top_logprobs=tuple(
            tuple(sorted((t or {}).values(), reverse=True)) for t in drawn.top_logprobs
        ),
        hidden_states=_parse_hidden_states(reply.kv_transfer_params) if hidden_states else None,
    )


def _parse_hidden_states(transferred: _KVTransferParams | None) -> HiddenStates:
    """Raises BadReply."""
    if transferred is None or (told := transferred.hidden_states) is None:
        raise BadReply("a probe's reply tells no hidden states")
    try:
        return HiddenStates(tuple(told.layers), told.width, told.data)
    except ValueError as error:
        raise BadReply(f"a probe's reply could not be read: {error}") from None


def _merge_scores(scored: Sequence[ProbeResponse]) -> ProbeResponse:
    """Tokens that were scored behind one another, as one."""
    return replace(
        scored[0],
        prefilled=sum(one.prefilled for one in scored),
        decoded=len(scored),
        end_logprob=math.fsum(one.end_logprob or 0.0 for one in scored),
    )
