"""One real vLLM for all tests, and gateways in front of it.

``ENGINE_URL`` names a running engine to use instead, started as ``benchmarks.services`` starts it;
``HIDDEN_STATE_ENGINE_URL`` one that returns hidden states.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.services import free_port, hidden_state_arguments, start_engine, start_gateway


@pytest.fixture(scope="session")
def vllm() -> Iterator[str]:
    """The base URL of vLLM with the pocket model."""
    if running := os.environ.get("ENGINE_URL"):
        yield running
        return
    with start_engine(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def hidden_state_engine() -> Iterator[str]:
    """The base URL of vLLM with the connector that returns hidden states."""
    if running := os.environ.get("HIDDEN_STATE_ENGINE_URL"):
        yield running
        return
    with start_engine(free_port(), *hidden_state_arguments()) as url:
        yield url


@pytest.fixture(scope="session")
def deer_gateway(vllm: str) -> Iterator[str]:
    """A gateway with the policy ``deer`` and no holdout."""
    with start_gateway(vllm, free_port(), "--policy", "deer", "--hold-out", "0") as url:
        yield url


@pytest.fixture(scope="session")
def never_gateway(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway whose policy sees every response and never stops one."""
    config = tmp_path_factory.mktemp("idle") / "adjourn.yaml"
    config.write_text("policy: never\nhold_out: 0\nrescue_tokens: 0\n")
    with start_gateway(vllm, free_port(), "--config", str(config)) as url:
        yield url
