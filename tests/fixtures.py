"""Fixtures: a stand-in engine for faults and speed, and a gateway before it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from benchmarks.services import free_port, start_gateway, start_process

__all__ = ["adjourn", "standin"]


@pytest.fixture(scope="session")
def standin() -> Iterator[str]:
    """The stand-in's base URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with start_process(
        [sys.executable, "-m", "benchmarks.standin", "--port", str(port), "--rate", "400"],
        f"{url}/health",
        timeout=20,
    ):
        yield url


@pytest.fixture(scope="session")
def adjourn(standin: str) -> Iterator[str]:
    """A gateway with ``deer`` before the stand-in; nothing is held out."""
    with start_gateway(standin, free_port(), "--policy", "deer", "--hold-out", "0") as url:
        yield url
