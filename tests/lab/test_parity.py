"""A replay takes the same decisions as the gateway, at the same tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adjourn.lab import serialization
from tests.gateway_client import body
from tests.lab.gateway_sessions import decisions, replay_decisions, run_through_gateway
from tests.lab.golden import FOLDER, read

TRIALS = {"trial": ["1", "1", "2", "2", "2"], "trial_logprob": [-0.4, -0.3, -0.2, -0.01]}
SCENES: list[dict[str, Any]] = [
    {"tokens": 160, "cues": [20, 50, 90, 120], "rate": 400, "probe_delay": delay, **extra, **TRIALS}
    for delay in (0.0, 0.03, 0.2)
    for extra in ({}, {"multi": 3}, {"writes_marker": True}, {"empty": 5})
]
POLICIES = (
    "deer(threshold=0.9)",
    "deer(threshold=0.9, gate=0, gap=0)",
    "convergence(every=25, window=2, min_tokens=30)",
    "any_of(deer(threshold=0.98), budget(max=100))",
    "all_of(deer(threshold=0.7, gate=0), budget(max=60, grace=0))",
    "loop",
    "margin(threshold=3)",
    "deer-pro(threshold=0.7, inducers=2)",
    "entropy(at='sentence', alpha=0.9)",
    "utility(at='sentence', patience=1)",
    "cusum(reference=2, threshold=3, min_tokens=0)",
    "deviation(window=20, min_tokens=20, entropy=0)",
    "any_of(no-thinking, margin)",
)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_replay_takes_the_decisions_of_the_gateway(standin: str, policy: str) -> None:
    """Every probe, cut and wasted token, over requests whose probes return early, late, and after
    the next cue; with the probe costs that the gateway learned from earlier requests."""
    sessions = run_through_gateway(standin, policy, [body(standin=scene) for scene in SCENES])
    assert len(sessions) == len(SCENES)
    expected = [decisions(session) for session in sessions]
    assert expected == replay_decisions(policy, sessions[0].dialect, [s.events for s in sessions])


def test_the_scenes_lead_to_decisions(standin: str) -> None:
    """The test above compares probes and cuts, not only empty lists."""
    sessions = run_through_gateway(
        standin, POLICIES[1], [body(standin=scene) for scene in SCENES[:4]]
    )
    assert any(session.stopped for session in sessions)
    assert sum(session.probe_count for session in sessions) > 4


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_replay_matches_a_golden_recording(path: Any) -> None:
    """The decisions of a gateway in front of a real vLLM, stored in a file."""
    recording = json.loads(path.read_text("utf-8"))
    dialect = serialization.from_json_value(recording["dialect"])
    traces = [read(one["events"]) for one in recording["requests"]]
    expected = [one["decisions"] for one in recording["requests"]]
    assert expected == json.loads(
        json.dumps(replay_decisions(recording["policy"], dialect, traces))
    )


def test_the_golden_recordings_have_cuts() -> None:
    """Otherwise they would test little."""
    triggers = [
        one["decisions"]["trigger"]
        for path in FOLDER.glob("*.json")
        for one in json.loads(path.read_text("utf-8"))["requests"]
    ]
    assert any(triggers)
