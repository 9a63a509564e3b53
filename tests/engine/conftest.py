"""A real vLLM with the pocket model, and a gateway before it, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.services import engine, free_port, gateway


@pytest.fixture(scope="session")
def vllm() -> Iterator[str]:
    with engine(free_port()) as url:
        yield url


@pytest.fixture(scope="session")
def real(vllm: str) -> Iterator[str]:
    with gateway(vllm, free_port(), "--policy", "deer", "--hold-out", "0") as url:
        yield url
