"""``lynx`` before an engine that tells hidden states, and before one that does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.services import free_port, hidden_state_arguments, start_gateway, start_process
from tests.gateway_client import chat, engine_requests, metric_value
from tests.policies.readiness_fixtures import classifier_document

READY, NOT_READY = 4.0, -4.0
TRACE = {"tokens": 80, "cues": [20, 50]}


def served(scenario: dict[str, Any]) -> Any:
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
def telling(config: str) -> Iterator[tuple[str, str]]:
    """A gateway before an engine that tells them, and that engine."""
    url, engine = served({"hidden": NOT_READY})
    with engine, start_gateway(url, free_port(), "--config", config) as adjourn:
        yield adjourn, url


@pytest.mark.parametrize(("hidden", "kept"), [(READY, 20), ((NOT_READY, READY), 50)])
def test_it_stops_where_the_states_say_ready(
    telling: tuple[str, str], hidden: Any, kept: int
) -> None:
    """At the first such cue; the probe leaves the trace open and asks for one token."""
    adjourn, standin = telling
    reply = chat(adjourn, standin={**TRACE, "hidden": hidden}).json()
    note = reply["adjourn"]
    assert (note["stopped"], note["policy"], note["reason"]) == (True, "lynx", "ready")
    assert note["position"] == kept
    assert note["confidence"] > 0.98
    probes = [
        json.loads(r["body"]) for r in engine_requests(standin) if r["path"] == "/v1/completions"
    ]
    assert probes[-1]["max_tokens"] == 1
    assert probes[-1]["kv_transfer_params"] == {"hidden_states": True}


def test_it_goes_on_where_they_do_not(telling: tuple[str, str]) -> None:
    reply = chat(telling[0], standin={**TRACE, "hidden": NOT_READY}).json()
    assert "adjourn" not in reply
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 80


@pytest.mark.parametrize(
    "broken",
    [{"hidden": None}, {"probe_status": 500}, {"hidden": READY, "hidden_layers": [2]}],
)
def test_states_that_do_not_come_change_nothing(
    telling: tuple[str, str], broken: dict[str, Any]
) -> None:
    """Fail open, counted: none, an error, and such as the probe was not learned from."""
    adjourn, _ = telling
    before = metric_value(adjourn, "adjourn_fail_open_total", policy="lynx")
    reply = chat(adjourn, standin={**TRACE, **broken}).json()
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 80
    assert metric_value(adjourn, "adjourn_fail_open_total", policy="lynx") > before


def test_a_probe_of_another_model_judges_nothing(telling: tuple[str, str]) -> None:
    reply = chat(telling[0], adjourn={"policy": "lynx", "probe": "other"}, standin=TRACE)
    assert reply.headers["x-adjourn-passed-through"] == "learned-of-another-model"


def test_a_client_names_a_probe_never_a_file(telling: tuple[str, str]) -> None:
    """Whatever it names besides is its own error, and no file is looked for."""
    for name in ("/etc/passwd", "lynx.json", ""):
        reply = chat(telling[0], adjourn={"policy": "lynx", "probe": name})
        assert reply.status_code == 400
        assert "must name a probe that `adjourn learn` made: mine, other" in reply.text


def test_an_engine_that_tells_none_is_said_at_start_up(
    config: str, tmp_path: Path, standin: str
) -> None:
    """With the very flags that would make it; requests are handed through, and it says why."""
    said = tmp_path / "log"
    with start_gateway(standin, free_port(), "--config", config, log=said) as adjourn:
        ready = httpx.get(f"{adjourn}/ready").json()
        reply = chat(adjourn, standin={**TRACE, "hidden": READY})
    flags = ready["missing"]["hidden states"]
    for flag in hidden_state_arguments((2, 5)):
        name, _, value = flag.partition("=")
        told = flags.partition(f"{name} '")[2].partition("'")[0]
        assert json.loads(told) == json.loads(value)
    assert flags in said.read_text().replace('\\"', '"')
    assert "policy lynx is off for standin: engine-tells-no-hidden-states" in said.read_text()
    assert reply.headers["x-adjourn-passed-through"] == "engine-tells-no-hidden-states"
    assert reply.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] == 80


def test_a_model_of_another_width_is_said_at_start_up(config: str) -> None:
    url, engine = served({"hidden": READY, "hidden_width": 3})
    with engine, start_gateway(url, free_port(), "--config", config) as adjourn:
        missing = httpx.get(f"{adjourn}/ready").json()["missing"]
    assert missing["hidden states"].endswith("of another width than this model's 3")
