"""Detects the kind of an engine: each kind reports its version under a path of its own."""

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
"""The adapters by name, in the order in which they are tried."""


async def detect_adapter(engine: EngineClient, name: str, headers: Headers) -> tuple[Adapter, str]:
    """The adapter for this engine, and the version that the engine reports, or "unknown".

    ``name`` is a key of ``ADAPTERS``, or ``auto``. With ``auto``, an engine that reports no version
    anywhere is treated as vLLM.
    """
    kinds = ADAPTERS.values() if name == "auto" else (ADAPTERS[name],)
    for kind in kinds:
        adapter = kind(engine)
        with contextlib.suppress(GatewayError):
            if (version := await adapter.fetch_version(headers)) is not None:
                return adapter, version
    return ADAPTERS["vllm" if name == "auto" else name](engine), "unknown"
