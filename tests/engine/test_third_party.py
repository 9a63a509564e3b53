"""A third-party policy package is found, passes its own tests, and stops traces on a real vLLM."""

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
    """An environment in which the example package is installed next to the gateway."""
    folder = tmp_path_factory.mktemp("third-party")
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    uv = ROOT / "scripts" / "uv"
    subprocess.run([uv, *install, "--python", sys.executable, EXAMPLE], check=True)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def stale(vllm: str, installed: dict[str, str]) -> Iterator[str]:
    """A gateway whose default policy is the third-party one."""
    with start_gateway(
        vllm, free_port(), "--policy", "stale", "--hold-out", "0", env=installed
    ) as url:
        yield url


def run(environment: dict[str, str], *command: str | Path) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.engine
def test_the_package_is_found_and_passes_its_own_tests(installed: dict[str, str]) -> None:
    adjourn = Path(sys.executable).parent / "adjourn"
    assert "stale(stretches=2, min_tokens=64)" in run(installed, adjourn, "policies")
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    assert "6 passed" in run(installed, *pytest_, EXAMPLE)


@pytest.mark.engine
def test_the_policy_stops_traces(stale: str) -> None:
    """As the default, with an option by request, and in a composition."""
    failed = metric_value(stale, "adjourn_fail_open_total")
    for policy in ("stale", "stale(stretches=1)", "any_of(stale, loop)"):
        summaries = [run_policy(stale, prompt, policy)[1] for prompt in PROMPTS[:6]]
        assert {summary["reason"] for summary in summaries if summary["stopped"]} == {"stale"}
    assert metric_value(stale, "adjourn_fail_open_total") == failed
