"""``lynx`` in front of an engine that returns hidden states, and in front of one that cannot."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.services import free_port, start_gateway, start_process
from tests.gateway_client import chat, engine_requests, metric_value
from tests.policies.readiness_fixtures import classifier_document

READY, NOT_READY = 4.0, -4.0
TRACE = {"tokens": 80, "cues": [20, 50]}


def standin_with(scenario: dict[str, Any]) -> Any:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.standin", "--port", str(port), "--rate", "400"]
    url = f"http://127.0.0.1:{port}"
    return url, start_process(
        [*command, "--scenario", json.dumps(scenario)], f"{url}/health", timeout=20
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lynx")
    (folder / "lynx.json").write_bytes(classifier_document(model="standin"))
    (folder / "other.json").write_bytes(classifier_document())
    path = folder / "adjourn.yaml"
    path.write_text(
        f"probes: {{mine: {folder}/lynx.json, other: {folder}/other.json}}\n"
        "policy: lynx(probe='mine')\nhold_out: 0\n"
    )
    return str(path)


@pytest.fixture(scope="module")
def hidden_state_gateway(config: str) -> Iterator[tuple[str, str]]:
    """A gateway and its stand-in engine, which returns hidden states; (gateway URL, engine
    URL)."""
    url, engine = standin_with({"hidden": NOT_READY})
    with engine, start_gateway(url, free_port(), "--config", config) as adjourn:
        yield adjourn, url


@pytest.mark.parametrize(("hidden", "kept"), [(READY, 20), ((NOT_READY, READY), 50)])
def test_lynx_stops_at_the_first_cue_with_ready_states(
    hidden_state_gateway: tuple[str, str], hidden: Any, kept: int
) -> None:
    """Its probe leaves the trace open and requests one token."""
    adjourn, standin = hidden_state_gateway
    reply = chat(adjourn, standin={**TRACE, "hidden": hidden}).json()
    summary = reply["adjourn"]
    assert (summary["stopped"], summary["policy"], summary["reason"]) == (True, "lynx", "ready")
    assert summary["position"] == kept
    assert summary["confidence"] > 0.98
    probes = [
        json.loads(r["body"]) for r in engine_requests(standin) if r["path"] == "/v1/completions"
    ]
    assert probes[-1]["max_tokens"] == 1
    assert probes[-1]["kv_transfer_params"] == {"hidden_states": True}


def test_lynx_does_not_stop_without_ready_states(hidden_state_gateway: tuple[str, str]) -> None:
    reply = chat(hidden_state_gateway[0], standin={**TRACE, "hidden": NOT_READY}).json()
    assert "adjourn" not in reply
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 80


@pytest.mark.parametrize(
    "broken",
    [{"hidden": None}, {"probe_status": 500}, {"hidden": READY, "hidden_layers": [2]}],
)
def test_missing_or_wrong_states_fail_open(
    hidden_state_gateway: tuple[str, str], broken: dict[str, Any]
) -> None:
    """No states, an error, or states of other layers than those the probe was trained on: counted,
    and the trace continues."""
    adjourn, _ = hidden_state_gateway
    before = metric_value(adjourn, "adjourn_fail_open_total", policy="lynx")
    reply = chat(adjourn, standin={**TRACE, **broken}).json()
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 80
    assert metric_value(adjourn, "adjourn_fail_open_total", policy="lynx") > before


def test_a_probe_trained_on_another_model_is_not_used(
    hidden_state_gateway: tuple[str, str],
) -> None:
    reply = chat(
        hidden_state_gateway[0], adjourn={"policy": "lynx", "probe": "other"}, standin=TRACE
    )
    assert reply.headers["x-adjourn-passed-through"] == "learned-of-another-model"


def test_a_client_may_name_a_probe_but_never_a_file(hidden_state_gateway: tuple[str, str]) -> None:
    """Any other name is a 400, and the gateway opens no file for it."""
    for name in ("/etc/passwd", "lynx.json", ""):
        reply = chat(hidden_state_gateway[0], adjourn={"policy": "lynx", "probe": name})
        assert reply.status_code == 400
        assert "must name a probe that `adjourn learn` made: mine, other" in reply.text


def test_an_engine_without_hidden_states_is_reported_at_start_up(
    config: str, tmp_path: Path, standin: str
) -> None:
    """With the engine flags that would enable them; requests pass through with the reason in a
    header."""
    log = tmp_path / "log"
    with start_gateway(standin, free_port(), "--config", config, log=log) as adjourn:
        ready = httpx.get(f"{adjourn}/ready").json()
        reply = chat(adjourn, standin={**TRACE, "hidden": READY})
    flags = ready["missing"]["hidden states"]
    assert "[2,5]" in flags
    assert flags in log.read_text().replace('\\"', '"')
    assert "policy lynx is off for standin: engine-tells-no-hidden-states" in log.read_text()
    assert reply.headers["x-adjourn-passed-through"] == "engine-tells-no-hidden-states"
    assert reply.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] == 80


def test_a_probe_of_another_width_is_reported_at_start_up(config: str) -> None:
    url, engine = standin_with({"hidden": READY, "hidden_width": 3})
    with engine, start_gateway(url, free_port(), "--config", config) as adjourn:
        missing = httpx.get(f"{adjourn}/ready").json()["missing"]
    assert missing["hidden states"].endswith("of another width than this model's 3")
