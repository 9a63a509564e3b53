"""``adjourn record`` against the stand-in: every checkpoint and probe, and no loss by a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adjourn.lab.replay import replay_all
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.trace_log import CheckpointReached, CutExecuted, ProbeCompleted, load
from adjourn.policies.events import Probe
from adjourn.policies.registry import parse
from benchmarks.services import ROOT
from tests.lab.trace_factory import trace, write_log

ADJOURN = Path(sys.executable).with_name("adjourn")
BODY = {"standin": {"tokens": 120, "cues": [30, 70], "rate": 2000, "trial": "42"}}


def command(folder: Path, standin: str, *options: str, prompts: int = 6) -> list[str]:
    path = folder / "prompts.jsonl"
    rows = ({"prompt": f"{n}?", "answer": 42, "id": f"p{n}"} for n in range(prompts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        str(ADJOURN), "record", str(path), "--upstream", standin, "--out",
        str(folder / "traces.jsonl"), "--body", json.dumps(BODY), *options,
    ]  # fmt: skip


def run(line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_every_checkpoint_is_probed(tmp_path: Path, standin: str) -> None:
    """The start, each cue and each interval, once for each sample."""
    line = command(tmp_path, standin, "--for", "deer", "--at", "interval=40", "--samples", "2")
    ran = run([*line, "--serve", "1"])
    assert ran.returncode == 0, ran.stderr
    recording, traces = load(tmp_path / "traces.jsonl")
    recorded = list(traces)
    assert sorted((t.prompt_id, t.sample_index) for t in recorded) == [
        (f"p{n}", s) for n in range(6) for s in (0, 1)
    ]
    assert [probe["max_tokens"] for probe in recording.probes] == [20]
    for one in recorded:
        checkpoints = {(e.kind, e.position) for e in one.events if isinstance(e, CheckpointReached)}
        assert checkpoints == {("start", 0), ("cue", 30), ("cue", 70)} | {
            ("interval", n) for n in (40, 80, 120)
        }
        probed = [e.position for e in one.events if isinstance(e, ProbeCompleted)]
        assert sorted(probed) == [0, 30, 40, 70, 80, 120]
        assert len([e for e in one.events if isinstance(e, CutExecuted)]) == 6
    replay_trace = ReplayDataset(tmp_path / "traces.jsonl").traces[0]
    assert (
        replay_trace.ledger.reasoning,
        replay_trace.trial_answer_at(0).answer,
        replay_trace.gold,
    ) == (120, "42", "42")


def test_a_kill_loses_only_unfinished_traces(tmp_path: Path, standin: str) -> None:
    """SIGKILL at arbitrary times: complete traces are kept, and none is recorded twice."""
    line = command(tmp_path, standin, "--concurrency", "2", prompts=10)
    path, lines = tmp_path / "traces.jsonl", list[bytes]()
    for _ in range(3):
        before = len(lines)
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)
        limit = time.monotonic() + 60
        while time.monotonic() < limit and process.poll() is None:
            if path.exists() and path.read_bytes().count(b"\n") > before + 2:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        complete = [
            one for one in path.read_bytes().splitlines(keepends=True) if one.endswith(b"\n")
        ]
        assert complete[: len(lines)] == lines
        lines = complete
    assert run(line).returncode == 0
    recorded = [(t.prompt_id, t.sample_index) for t in load(path)[1]]
    assert sorted(recorded) == sorted((f"p{n}", 0) for n in range(10))
    assert path.read_bytes().splitlines(keepends=True)[: len(lines)] == lines
    content = path.read_bytes()
    assert run(line).returncode == 0
    assert content == path.read_bytes()


@pytest.mark.parametrize("fault", ["die_after", "error_event_after"])
def test_a_failing_engine_is_reported(tmp_path: Path, standin: str, fault: str) -> None:
    """The message counts the missing traces, and the file has none of them."""
    line = command(tmp_path, standin, prompts=2)
    body = {"standin": {**BODY["standin"], fault: 50}}
    ran = run([part if part != json.dumps(BODY) else json.dumps(body) for part in line])
    assert ran.returncode == 2
    assert "2 traces are missing" in ran.stderr
    assert list(load(tmp_path / "traces.jsonl")[1]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "other"], "choose a model that is served: standin"),
        (["--at", "nowhere"], "no checkpoints 'nowhere'"),
        (["--probe", "ask()"], "is not a probe"),
        (["--for", "nothing"], "unknown policy"),
        (["--body", "[]"], "Expected `object`"),
    ],
)
def test_a_bad_command_is_refused(
    tmp_path: Path, standin: str, options: list[str], message: str
) -> None:
    """With one line and no traceback; no file is created."""
    ran = run([*command(tmp_path, standin), *options])
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)
    assert message in ran.stderr
    assert not (tmp_path / "traces.jsonl").exists()


def test_a_file_of_another_recording_is_not_changed(tmp_path: Path, standin: str) -> None:
    """The message names what differs."""
    write_log(tmp_path / "traces.jsonl", [trace(["a"])])
    ran = run(command(tmp_path, standin))
    assert ran.returncode == 2
    assert "was recorded with another model" in ran.stderr


def test_an_unreachable_engine_is_reported(tmp_path: Path) -> None:
    """With its URL, in one line."""
    ran = run(command(tmp_path, "http://127.0.0.1:9"))
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)
    assert "http://127.0.0.1:9" in ran.stderr


def test_the_needs_of_every_policy_are_recorded(tmp_path: Path, standin: str) -> None:
    """Probes without the closing sequence, scores of the end, and the most probable tokens, in a
    probe and in the trace. A replay finds all of them, and the plan has no other probes."""
    policies = ["margin", "entropy(at='sentence')", "utility(at='sentence')", "cusum"]
    line = command(tmp_path, standin, *(f"--for={policy}" for policy in policies), prompts=2)
    ran = run(line)
    assert ran.returncode == 0, ran.stderr
    dataset = ReplayDataset(tmp_path / "traces.jsonl")
    assert len(dataset.header.probes) == 4
    for policy in policies:
        outcomes = replay_all(parse(policy), dataset, instant=True)
        assert sum(outcome.missing_probes for outcome in outcomes) == 0
    for replay_trace in dataset.traces:
        assert {
            len(top) for chunk in replay_trace.chunks if chunk.text for top in chunk.logprobs
        } == {20}
        kept = {
            checkpoint.kept
            for checkpoint in replay_trace.checkpoints
            if checkpoint.kind == "sentence"
        }
        found = [
            replay_trace.results.find_probe(Probe("", 1, close_trace=False, score_end=True), n, n)
            for n in kept
        ]
        assert [one.decoded_tokens for one in found if one is not None] == [2] * len(kept)
