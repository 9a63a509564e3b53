"""One real engine for all, and a gateway with ``deer`` before it; nothing is held out.

``ENGINE_URL`` names an engine that is up already, started as ``benchmarks.services`` starts one,
and ``TELLING_ENGINE_URL`` one that tells hidden states.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.services import free_port, hidden_state_arguments, start_engine, start_gateway


@pytest.fixture(scope="session")
def vllm() -> Iterator[str]:
    if running := os.environ.get("ENGINE_URL"):
        yield running
        return
    with start_engine(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def hidden_state_engine() -> Iterator[str]:
    """An engine that tells hidden states."""
    if running := os.environ.get("TELLING_ENGINE_URL"):
        yield running
        return
    with start_engine(free_port(), *hidden_state_arguments()) as url:
        yield url


@pytest.fixture(scope="session")
def deer_gateway(vllm: str) -> Iterator[str]:
    with start_gateway(vllm, free_port(), "--policy", "deer", "--hold-out", "0") as url:
        yield url


@pytest.fixture(scope="session")
def never_gateway(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway that judges and never does anything."""
    config = tmp_path_factory.mktemp("idle") / "adjourn.yaml"
    config.write_text("policy: never\nhold_out: 0\nrescue_tokens: 0\n")
    with start_gateway(vllm, free_port(), "--config", str(config)) as url:
        yield url
