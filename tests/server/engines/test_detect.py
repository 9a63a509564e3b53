"""Detecting the kind of an engine."""

from __future__ import annotations

import asyncio

import pytest

from adjourn.server.config import Settings
from adjourn.server.engines.detect import ADAPTERS, detect_adapter
from adjourn.server.upstream.client import EngineClient
from tests.server.engines.scripted_engine import VERSIONS, ScriptedTransport


def detect(paths: tuple[str, ...], name: str = "auto") -> tuple[str, str]:
    """The detected kind and version of an engine that answers under these paths only."""
    transport = ScriptedTransport(lambda path, _: VERSIONS[path] if path in paths else 404)
    adapter, version = asyncio.run(detect_adapter(EngineClient(Settings(), transport), name, []))
    return adapter.name, version


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("/version",), ("vllm", "0.32.0")),
        (("/server_info", "/get_server_info"), ("sglang", "0.5.23")),
        (("/get_server_info",), ("sglang", "0.4.0")),
        (("/props",), ("llamacpp", "b10434-7e4c0a9")),
        ((), ("vllm", "unknown")),
    ],
)
def test_the_kind_is_detected_by_the_path_of_the_version(
    paths: tuple[str, ...], expected: tuple[str, str]
) -> None:
    """An engine without a version is treated as vLLM."""
    assert detect(paths) == expected


def test_a_configured_kind_is_not_detected() -> None:
    """Only its version is requested, and may be unknown."""
    assert detect(("/version",), "sglang") == ("sglang", "unknown")
    assert detect(("/version", "/props"), "llamacpp") == ("llamacpp", "b10434-7e4c0a9")


def test_each_kind_can_be_configured() -> None:
    """By the setting `engine`."""
    assert [Settings(engine=name).engine for name in ADAPTERS] == list(ADAPTERS)  # type: ignore[arg-type]
