"""Session fixtures: a stand-in engine that can inject faults, and a gateway in front of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from benchmarks.services import free_port, start_gateway, start_process

__all__ = ["adjourn", "standin"]


@pytest.fixture(scope="session")
def standin() -> Iterator[str]:
    """Start the stand-in engine; gives its base URL."""
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
    """Start a gateway in front of the stand-in, with the policy ``deer`` and no holdout."""
    with start_gateway(standin, free_port(), "--policy", "deer", "--hold-out", "0") as url:
        yield url
