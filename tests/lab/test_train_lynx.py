"""``adjourn learn --policy lynx`` trains a probe on hidden states, calibrates and evaluates it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from adjourn.lab import serialization
from adjourn.lab.comparison import compare
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.trace_log import ProbeCompleted, Trace
from adjourn.lab.train_lynx import calibrate, collect_cues, fit_probe
from adjourn.policies.events import Probe
from adjourn.policies.evidence.readiness import NOT_READY, READY, ReadinessClassifier
from adjourn.policies.registry import BadPolicy
from adjourn.server.cli import add_commands, app
from tests.lab.trace_factory import SECONDS_PER_TOKEN, probe_completed, trace, write_log
from tests.policies.readiness_fixtures import classifier_document, make_hidden_states
from tests.policies.session_helpers import probe_result

TEXTS = [*[" a"] * 30, " Wait", *[" b"] * 30, " Wait", *[" c"] * 30, " Wait", *[" d"] * 9]
CUES = (30, 61, 92)
STATE_PROBE = Probe(inducer="", max_tokens=1, close_trace=False, hidden_states=True)


def states_completed(position: int, *numbers: float) -> ProbeCompleted:
    """A probe for hidden states at a cue; it returns before the trial answer."""
    sent_at, states = SECONDS_PER_TOKEN * (position + 1), make_hidden_states(*numbers)
    result = probe_result(
        position, "W", probe=STATE_PROBE, finished=False, at=sent_at, hidden_states=states
    )
    return ProbeCompleted(sent_at, sent_at, position, position, serialization.to_json_value(result))


def make_traces(count: int) -> list[Trace]:
    """Traces in which the third number of the states is high at ready cues; all else is random."""
    rng, traces = random.Random(count), []
    for index in range(count):
        ready_from = rng.randrange(4)
        probes = []
        for index_of_cue, at in enumerate(CUES):
            ready = index_of_cue >= ready_from
            signal = rng.gauss(1.5 if ready else -1.5, 1)
            noise = (rng.gauss(0, 1) for _ in range(3))
            probes.append(states_completed(at, next(noise), next(noise), signal, next(noise)))
            probes.append(probe_completed(at, "7" if ready else "5", rng.choice([0.6, 0.9])))
        traces.append(trace(TEXTS, probes, prompt=f"p{index}", answer="\\boxed{7}"))
    return traces


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("lynx") / "traces.jsonl", make_traces(240))


def test_cues_are_read_from_the_log(recorded: Path) -> None:
    """With the hidden states and the label of each."""
    dataset = ReplayDataset(recorded)
    examples = list(collect_cues(dataset))
    assert len(examples) == 240 * len(CUES)
    assert examples[0].states.layers == (2, 5)
    rng = random.Random(240)
    assert examples[0].is_ready == (rng.randrange(4) == 0)
    assert {layer.number for layer in dataset.hidden_state_layers} == {2, 5}


def test_weights_fit_the_recording(recorded: Path) -> None:
    """Only the third number gets a large weight."""
    probe = fit_probe("made", list(collect_cues(ReplayDataset(recorded))))
    assert probe.weights[2] > 1
    assert max(abs(probe.weights[n]) for n in (0, 1, 3)) < 0.3


def test_prediction_sets_cover_held_out_cues(recorded: Path, tmp_path: Path) -> None:
    """At δ = 0.1, within four standard errors."""
    cues = list(collect_cues(ReplayDataset(recorded)))
    probe = ReadinessClassifier.parse(calibrate(fit_probe("made", cues[:200]), cues[200:500], {}))
    held_out = cues[500:]
    for ready, label in ((True, READY), (False, NOT_READY)):
        sets = [
            probe.prediction_set(probe.probability(c.states), 0.1)
            for c in held_out
            if c.is_ready is ready
        ]
        covered = sum(label in labels for labels in sets) / len(sets)
        assert covered >= 0.9 - 4 * (0.09 / len(sets)) ** 0.5


def run(*arguments: Any) -> Any:
    add_commands()
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_a_probe_that_can_be_replayed(recorded: Path, tmp_path: Path) -> None:
    """The document names its training data; `adjourn replay` takes its path."""
    out = tmp_path / "lynx.json"
    done = run("learn", recorded, "--policy", "lynx", "--out", out)
    assert done.exit_code == 0, done.output
    assert "AUROC 0.9" in done.output
    assert "policy: lynx(probe='mine')" in done.output
    probe = ReadinessClassifier.parse(out.read_bytes())
    assert (probe.model, probe.layers, probe.width) == ("made", (2, 5), 2)
    assert len(probe.ready_scores) > 50 < len(probe.not_ready_scores)
    points = compare(
        recorded,
        [f"lynx(probe='{out}', delta={{0.02,0.2}})", "lynx"],
        tmp_path / "replay",
        0.01,
        instant=True,
        console=Console(quiet=True),
    )
    stopped = {point.name[-7:]: point.stopped_share for point in points if not point.is_baseline}
    assert stopped["lynx"] == 0 < stopped["a=0.02)"] < stopped["ta=0.2)"]


def test_too_few_cues_are_refused(tmp_path: Path) -> None:
    few = write_log(tmp_path / "few.jsonl", make_traces(8))
    out = tmp_path / "lynx.json"
    done = run("learn", few, "--policy", "lynx", "--out", out)
    assert done.exit_code == 2
    assert "too few; record more prompts" in " ".join(done.output.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "trained on small, but the recording is of made"),
        (
            {"model": "made", "layers": [2, 4]},
            r"after layer 4 \(width 2\) were not recorded",
        ),
        ({"version": 0}, "version is 0"),
        (None, "No such file"),
    ],
)
def test_a_probe_that_does_not_fit_the_recording_is_refused(
    recorded: Path, tmp_path: Path, changes: dict[str, Any] | None, message: str
) -> None:
    """Another model, layers that were not recorded, a broken file, or none."""
    path = tmp_path / "lynx.json"
    if changes is not None:
        path.write_bytes(classifier_document(**changes))
    with pytest.raises(BadPolicy, match=message):
        compare(recorded, [f"lynx(probe='{path}')"], tmp_path / "replay", 0.01, instant=True)
