"""``adjourn learn`` finds what makes a trial answer the final one, and says so of other prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from adjourn.lab import serialization
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.trace_log import ProbeCompleted, Trace
from adjourn.lab.train_learned import _with_recorded_entropy, collect_examples, fit
from adjourn.policies.events import Probe
from adjourn.policies.registry import build
from adjourn.policies.stopping.learned import Learned
from adjourn.server.cli import add_commands, app
from tests.lab.trace_factory import HEADER, probe_completed, trace, write_log

TEXTS = [*[" a"] * 30, " Wait", *[" b"] * 30, " Wait", *[" c"] * 30, " Wait", *[" d"] * 9]
CUES = (30, 61, 92)


def made(number: int) -> list[Trace]:
    """Traces in which confidence says nothing, and the second of two equal answers is final."""
    rng, traces = random.Random(number), []
    for index in range(number):
        said = ["5", "5", "7"] if index % 3 == 0 else ["5", "7", "7"]
        draws = [
            probe_completed(at, answer, rng.choice([0.6, 0.9]))
            for at, answer in zip(CUES, said, strict=True)
        ]
        traces.append(trace(TEXTS, draws, prompt=f"p{index}", answer="\\boxed{7}"))
    return traces


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return write_log(tmp_path / "traces.jsonl", made(60))


def test_it_sees_what_the_policy_would_see(recorded: Path) -> None:
    """Every place, and whether its answer is the trace's own in the end."""
    looked = list(collect_examples(Learned(gap=0), ReplayDataset(recorded)))
    assert len(looked) == 60 * len(CUES)
    assert [one.is_final for one in looked[:6]] == [False, False, True, False, True, True]
    assert [one.features.agreement for one in looked[:3]] == [0.0, 1.0, 0.0]


def test_it_learns_what_matters(recorded: Path) -> None:
    """Here a change of the answer makes it final, and confidence means little."""
    learned = fit(Learned(gap=0), list(collect_examples(Learned(gap=0), ReplayDataset(recorded))))
    assert learned.changes > 1
    assert abs(learned.confidence) < 0.5


def test_entropy_is_learned_where_it_was_recorded(tmp_path: Path) -> None:
    """The final answers are those of which the model was sure of every token; traces that do not
    tell of it give it no weight."""
    attentive = Learned(entropy=1.0)
    traces = made(60)
    for one in traces:
        for place, draw in enumerate([e for e in one.events if isinstance(e, ProbeCompleted)]):
            final = draw.result["text"].startswith("7")
            top = [[-0.1 if final else -0.7, -0.7 - (place % 2) / 10]] * 2
            result = draw.result | {
                "probe": serialization.to_json_value(attentive.probe),
                "top_logprobs": top,
            }
            one.events.append(msgspec.structs.replace(draw, result=result))
    probes = serialization.to_json_value([Probe(), attentive.probe])
    recording = msgspec.structs.replace(HEADER, probes=probes)
    told = ReplayDataset(write_log(tmp_path / "told.jsonl", traces, recording))
    policy = _with_recorded_entropy(Learned(gap=0), told)
    looked = list(collect_examples(policy, told))
    assert {one.features.entropy < 0.6 for one in looked if one.is_final} == {True}
    assert fit(policy, looked).entropy < -1
    untold = ReplayDataset(write_log(tmp_path / "untold.jsonl", made(60)))
    policy = _with_recorded_entropy(Learned(gap=0), untold)
    assert policy.entropy == fit(policy, list(collect_examples(policy, untold))).entropy == 0.0


def test_the_command(recorded: Path, tmp_path: Path) -> None:
    """What it writes is a request's own field, and it says how good that is on other prompts."""
    add_commands()
    out = tmp_path / "learned.json"
    done = CliRunner().invoke(app, ["learn", str(recorded), "--out", str(out), "--tolerance", "5"])
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    options = dict(document["adjourn"])
    assert isinstance(build(options.pop("policy"), options), Learned)
    assert document["learned_from"] == {"model": "made", "traces": 60, "prompts": 60}
    assert document["out_of_sample"]["auroc"] > 0.9
    assert document["out_of_sample"]["auroc"] > document["out_of_sample"]["auroc_of_confidence"]
    assert "learned(threshold=" in done.output


def test_too_little_to_learn_from(tmp_path: Path) -> None:
    few = write_log(tmp_path / "few.jsonl", made(5))
    add_commands()
    done = CliRunner().invoke(app, ["learn", str(few), "--out", str(tmp_path / "o.json")])
    assert done.exit_code == 2
    assert "too few" in done.output
    assert not (tmp_path / "o.json").exists()
