"""Of which kind is this engine? It says so itself, each kind at a place of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import MappingProxyType

from server.adapters.adapter import Adapter, Headers
from server.adapters.llamacpp import LlamaCpp
from server.adapters.sglang import SGLang
from server.adapters.vllm import VLLM
from server.engine import EngineClient
from server.errors import GatewayError

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
