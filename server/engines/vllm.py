"""vLLM. A stock engine is enough, and the only engine flag required is the reasoning parser. Hidden
states also need the connector in ``engine/`` and the flags that load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from adjourn.policies.events import Probe
from adjourn.server.engines.adapter import Adapter, Headers, ProbeResponse
from adjourn.server.engines.completion_probe import COMPLETIONS_PATH, run_probe
from adjourn.server.upstream.client import BadReply, EngineClient

__all__ = ["VLLM", "fetch_version_from", "hidden_state_options"]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Version(msgspec.Struct):
    version: str


async def fetch_version_from(engine: EngineClient, path: str, headers: Headers) -> str | None:
    """The version reported at ``path``; None if the engine does not report one there."""
    status, content = await engine.get(path, headers)
    try:
        return msgspec.json.decode(content, type=_Version).version if status == 200 else None
    except msgspec.MsgspecError:
        return None


def hidden_state_options(layers: Iterable[int]) -> dict[str, Any]:
    """The options of ``vllm serve``, each with its JSON value, that make the engine report the
    hidden states after these layers."""
    return {
        "--speculative-config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {
                "hf_config": {"eagle_aux_hidden_state_layer_ids": sorted(layers)}
            },
        },
        "--kv-transfer-config": {
            "kv_connector": "HiddenStatesConnector",
            "kv_connector_module_path": "adjourn_hidden_states",
            "kv_role": "kv_producer",
        },
    }


class VLLM(Adapter):
    """The calls to a vLLM engine."""

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
        async def post(body: bytes) -> bytes:
            return await self.engine.post(COMPLETIONS_PATH, body, headers)

        return await run_probe(post, model, prompt, probe, extra, ending_ids)

    def hidden_state_flags(self, layers: Iterable[int]) -> str:
        return " ".join(
            f"{name} '{msgspec.json.encode(value).decode()}'"
            for name, value in hidden_state_options(layers).items()
        )

    async def tokenize(self, model: str, text: str, headers: Headers) -> list[int]:
        body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
        content = await self.engine.post("/tokenize", body, headers)
        try:
            return msgspec.json.decode(content, type=_Tokens).tokens
        except msgspec.MsgspecError as error:
            raise BadReply(f"the reply of /tokenize cannot be read: {error}") from None
