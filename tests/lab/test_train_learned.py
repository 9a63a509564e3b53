"""``adjourn learn`` fits `learned` to a recording and evaluates it on held-out prompts."""

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


def make_traces(number: int) -> list[Trace]:
    """Traces in which confidence means nothing, and a changed answer is final."""
    rng, traces = random.Random(number), []
    for index in range(number):
        answers = ["5", "5", "7"] if index % 3 == 0 else ["5", "7", "7"]
        probes = [
            probe_completed(at, answer, rng.choice([0.6, 0.9]))
            for at, answer in zip(CUES, answers, strict=True)
        ]
        traces.append(trace(TEXTS, probes, prompt=f"p{index}", answer="\\boxed{7}"))
    return traces


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return write_log(tmp_path / "traces.jsonl", make_traces(60))


def test_examples_are_what_the_policy_would_observe(recorded: Path) -> None:
    """Every trial answer, labelled by whether it is the final answer of the trace."""
    examples = list(collect_examples(Learned(gap=0), ReplayDataset(recorded)))
    assert len(examples) == 60 * len(CUES)
    assert [one.is_final for one in examples[:6]] == [False, False, True, False, True, True]
    assert [one.features.agreement for one in examples[:3]] == [0.0, 1.0, 0.0]


def test_weights_fit_the_recording(recorded: Path) -> None:
    """In these traces changed answers are final, and confidence means nothing."""
    learned = fit(Learned(gap=0), list(collect_examples(Learned(gap=0), ReplayDataset(recorded))))
    assert learned.changes > 1
    assert abs(learned.confidence) < 0.5


def test_entropy_gets_a_weight_if_it_was_recorded(tmp_path: Path) -> None:
    """Here final answers have a low entropy in every token. Without recorded entropies the weight
    is zero."""
    policy_with_entropy = Learned(entropy=1.0)
    traces = make_traces(60)
    for one in traces:
        for number, probe in enumerate([e for e in one.events if isinstance(e, ProbeCompleted)]):
            final = probe.result["text"].startswith("7")
            top = [[-0.1 if final else -0.7, -0.7 - (number % 2) / 10]] * 2
            result = probe.result | {
                "probe": serialization.to_json_value(policy_with_entropy.probe),
                "top_logprobs": top,
            }
            one.events.append(msgspec.structs.replace(probe, result=result))
    probes = serialization.to_json_value([Probe(), policy_with_entropy.probe])
    recording = msgspec.structs.replace(HEADER, probes=probes)
    with_entropy = ReplayDataset(write_log(tmp_path / "with_entropy.jsonl", traces, recording))
    policy = _with_recorded_entropy(Learned(gap=0), with_entropy)
    examples = list(collect_examples(policy, with_entropy))
    assert {one.features.entropy < 0.6 for one in examples if one.is_final} == {True}
    assert fit(policy, examples).entropy < -1
    without_entropy = ReplayDataset(write_log(tmp_path / "without_entropy.jsonl", make_traces(60)))
    policy = _with_recorded_entropy(Learned(gap=0), without_entropy)
    assert (
        policy.entropy
        == fit(policy, list(collect_examples(policy, without_entropy))).entropy
        == 0.0
    )


def test_the_command_writes_a_policy(recorded: Path, tmp_path: Path) -> None:
    """As the ``adjourn`` field of a request, with its quality on held-out prompts."""
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


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    few = write_log(tmp_path / "few.jsonl", make_traces(5))
    add_commands()
    done = CliRunner().invoke(app, ["learn", str(few), "--out", str(tmp_path / "o.json")])
    assert done.exit_code == 2
    assert "too few" in done.output
    assert not (tmp_path / "o.json").exists()
