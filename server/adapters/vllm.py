"""vLLM. All of it is stock, with no flag of the operator's but the reasoning parser; hidden states
alone need a connector, and flags that bring it in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from policies.events import Probe
from policies.hidden_states import HiddenStates
from server.adapters.adapter import Adapter, Drawn, Headers
from server.engine import BadReply, Engine

__all__ = ["VLLM", "told_version"]


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] = []


class _Drawn(msgspec.Struct):
    text: str
    index: int = 0
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _States(msgspec.Struct):
    layers: list[int]
    width: int
    dtype: Literal["bfloat16"]
    data: bytes


class _Transferred(msgspec.Struct):
    hidden_states: _States | None = None


class _Completion(msgspec.Struct):
    choices: list[_Drawn]
    usage: _Usage = msgspec.field(default_factory=_Usage)
    kv_transfer_params: _Transferred | None = None


_decode_completion = msgspec.json.Decoder(_Completion).decode


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Version(msgspec.Struct):
    version: str


async def told_version(engine: Engine, path: str, headers: Headers) -> str | None:
    """The version that stands at ``path``; None where there is no such thing."""
    status, content = await engine.get(path, headers)
    try:
        return msgspec.json.decode(content, type=_Version).version if status == 200 else None
    except msgspec.MsgspecError:
        return None


class VLLM(Adapter):
    name = "vllm"
    retold = True

    async def version(self, headers: Headers) -> str | None:
        return await told_version(self.engine, "/version", headers)

    async def probe(
        self,
        model: str,
        prompt: Sequence[int],
        probe: Probe,
        headers: Headers,
        extra: Mapping[str, Any],
        ending: Sequence[int] = (),
    ) -> Drawn:
        # Each id of the ending is a prompt more in the same request.
        fields = {
            **extra,
            "model": model,
            "prompt": [[*prompt, *ending[:n]] for n in range(len(ending))] or prompt,
            "max_tokens": probe.max_tokens,
            "temperature": 0,
            "logprobs": probe.top,
        }
        if ending:
            fields["logprob_token_ids"] = list(ending)
        if ending or (probe.top > 1 and probe.max_tokens == 1):
            # By their text, tokens that look alike would be one; an answer is read from its text.
            fields["return_tokens_as_token_ids"] = True
        if probe.hidden_states:
            fields["kv_transfer_params"] = {"hidden_states": True}
        content = await self.engine.post("/v1/completions", msgspec.json.encode(fields), headers)
        return _read_drawn(content, probe, ending)

    async def speculates(self, headers: Headers) -> bool:
        # With `logprob_token_ids` in a batch that verifies drafts, 0.32 answers 500, or dies where
        # another of its requests has log-probabilities.
        status, content = await self.engine.get("/metrics", headers)
        return status == 200 and b"vllm:spec_decode_num_draft_tokens" in content

    def flags(self, layers: Iterable[int]) -> str:
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


def _read_drawn(content: bytes, probe: Probe, ending: Sequence[int]) -> Drawn:
    try:
        reply = _decode_completion(content)
        choices = sorted(reply.choices, key=lambda choice: choice.index)
        choice = choices[0]
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
    cached = (details.cached_tokens if details else None) or 0  # of one prompt, told once
    return Drawn(
        text=choice.text,
        tokens=tuple(drawn.tokens),
        logprobs=tuple(p for p in drawn.token_logprobs if p is not None),
        finished=choice.finish_reason == "stop",
        prefilled=reply.usage.prompt_tokens - cached * len(choices),
        decoded=max(len(drawn.tokens), len(choices)),
        top=tuple(tuple(sorted((t or {}).values(), reverse=True)) for t in drawn.top_logprobs),
        ending=_scored(choices, ending) if ending else None,
        hidden_states=_read_states(reply.kv_transfer_params) if probe.hidden_states else None,
    )


def _read_states(transferred: _Transferred | None) -> HiddenStates:
    """Raises BadReply."""
    if transferred is None or (told := transferred.hidden_states) is None:
        raise BadReply("a probe's reply tells no hidden states")
    try:
        return HiddenStates(tuple(told.layers), told.width, told.data)
    except ValueError as error:
        raise BadReply(f"a probe's reply could not be read: {error}") from None


def _scored(choices: Sequence[_Drawn], ids: Sequence[int]) -> float:
    """The log-probability of ``ids`` in a row: each is told by the choice whose prompt ends before
    it. Raises BadReply."""
    total = 0.0
    try:
        for choice, token in zip(choices, ids, strict=True):
            assert choice.logprobs is not None
            total += (choice.logprobs.top_logprobs[0] or {})[f"token_id:{token}"]
    except (AssertionError, LookupError, ValueError):
        raise BadReply("a probe's reply does not score the tokens it was asked about") from None
    return total
