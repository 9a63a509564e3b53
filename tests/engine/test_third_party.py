"""A policy that somebody else wrote, in a package of its own, found, tested and served."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.services import free_port, start_gateway
from tests.engine.pocket_client import PROMPTS
from tests.engine.test_policies import run_policy
from tests.gateway_client import metric_value

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "stale"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the package is installed beside the gateway."""
    folder = tmp_path_factory.mktemp("third-party")
    install = ["pip", "install", "--quiet", "--system-certs", "--no-deps", "--target", str(folder)]
    uv = ROOT / "scripts" / "uv"
    subprocess.run([uv, *install, "--python", sys.executable, EXAMPLE], check=True)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def stale(vllm: str, installed: dict[str, str]) -> Iterator[str]:
    with start_gateway(
        vllm, free_port(), "--policy", "stale", "--hold-out", "0", env=installed
    ) as url:
        yield url


def run(environment: dict[str, str], *command: str | Path) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.engine
def test_it_is_found_and_its_own_tests_pass(installed: dict[str, str]) -> None:
    adjourn = Path(sys.executable).parent / "adjourn"
    assert "stale(stretches=2, min_tokens=64)" in run(installed, adjourn, "policies")
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    assert "4 passed" in run(installed, *pytest_, EXAMPLE)


@pytest.mark.engine
def test_it_stops_traces_of_a_real_engine(stale: str) -> None:
    """By default, with an option by request, and as a part of a composition."""
    failed = metric_value(stale, "adjourn_fail_open_total")
    for policy in ("stale", "stale(stretches=1)", "any_of(stale, loop)"):
        notes = [run_policy(stale, prompt, policy)[1] for prompt in PROMPTS[:6]]
        assert {note["reason"] for note in notes if note["stopped"]} == {"stale"}
    assert metric_value(stale, "adjourn_fail_open_total") == failed
