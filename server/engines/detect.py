"""Of which kind is this engine? It says so itself, each kind at a place of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import MappingProxyType

from adjourn.server.engines.adapter import Adapter, Headers
from adjourn.server.engines.llamacpp import LlamaCpp
from adjourn.server.engines.sglang import SGLang
from adjourn.server.engines.vllm import VLLM
from adjourn.server.errors import GatewayError
from adjourn.server.upstream.client import EngineClient

__all__ = ["ADAPTERS", "detect_adapter"]

ADAPTERS: Mapping[str, type[Adapter]] = MappingProxyType(
    {kind.name: kind for kind in (VLLM, SGLang, LlamaCpp)}
)


async def detect_adapter(engine: EngineClient, name: str, headers: Headers) -> tuple[Adapter, str]:
    """The adapter and what the engine calls its version. ``name`` is a kind, or `auto`: then one
    that says nothing of itself is tried as vLLM."""
    kinds = ADAPTERS.values() if name == "auto" else (ADAPTERS[name],)
    for kind in kinds:
        adapter = kind(engine)
        with contextlib.suppress(GatewayError):
            if (version := await adapter.fetch_version(headers)) is not None:
                return adapter, version
    return ADAPTERS["vllm" if name == "auto" else name](engine), "unknown"
