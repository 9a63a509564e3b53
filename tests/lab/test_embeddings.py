"""A recording embeds the steps of a trace, and a replay uses the vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.lab.comparison import compare
from adjourn.lab.replay import replay_all
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.trace_log import CheckpointReached, EmbeddingCompleted, load
from adjourn.lab.vectors import pack_vector, unpack_vector
from adjourn.policies.evidence.similarity import CosineSimilarity
from adjourn.policies.registry import BadPolicy, parse
from tests.lab.test_record import command, run
from tests.lab.trace_factory import trace, write_log

POLICY = "redundancy(by='embedding', similarity=0.5, min_steps=2)"
LONG = '{"standin": {"tokens": 1500, "rate": 4000, "trial_logprob": -0.001}}'


def record_two(folder: Path, standin: str, *options: str) -> Path:
    line = command(folder, standin, "--for", POLICY, *options, prompts=2)
    ran = run([*line, "--body", LONG])
    assert ran.returncode == 0, ran.stderr
    return folder / "traces.jsonl"


def test_a_recording_has_a_vector_for_each_step(tmp_path: Path, standin: str) -> None:
    """And the name of the embedder. A replay of the policy finds every vector."""
    path = record_two(
        tmp_path, standin, "--embeddings-url", standin, "--embeddings-model", "standin"
    )
    recording, traces = load(path)
    assert recording.embedder_name == "standin"
    for one in traces:
        steps = [
            e.position for e in one.events if isinstance(e, CheckpointReached) and e.kind == "step"
        ]
        embedded = [e for e in one.events if isinstance(e, EmbeddingCompleted)]
        assert [e.position for e in embedded] == steps != []
        assert {len(e.vector) for e in embedded} == {2 * 64}
    outcomes = replay_all(parse(POLICY), ReplayDataset(path))
    assert [o.reason for o in outcomes] == ["redundant", "redundant"]
    assert [(o.missing_probes, o.inexact_probes) for o in outcomes] == [(0, 0)] * 2
    strict = replay_all(parse(POLICY.replace("0.5", "1.0")), ReplayDataset(path))
    assert [o.stopped for o in strict] == [False, False]


def test_an_unreachable_embedder_is_recorded_as_failures(tmp_path: Path, standin: str) -> None:
    """The traces are complete, and a replay stops none."""
    path = record_two(tmp_path, standin, "--embeddings-url", "http://127.0.0.1:9")
    embedded = [e for one in load(path)[1] for e in one.events if isinstance(e, EmbeddingCompleted)]
    assert {e.vector for e in embedded} == {b""}
    outcomes = replay_all(parse(POLICY), ReplayDataset(path))
    assert [(o.stopped, o.missing_probes) for o in outcomes] == [(False, 0)] * 2


def test_recording_embeddings_requires_an_embedder(tmp_path: Path, standin: str) -> None:
    """The message names the missing option."""
    ran = run(command(tmp_path, standin, "--for", POLICY))
    assert ran.returncode == 2
    assert "--embeddings-url" in ran.stderr


def test_a_replay_without_recorded_embeddings_is_refused(tmp_path: Path) -> None:
    """The message names the option to record with."""
    path = write_log(tmp_path / "traces.jsonl", [trace(["One", " two."])])
    with pytest.raises(BadPolicy, match="--embeddings-url"):
        compare(path, [POLICY], tmp_path / "out", 0.01)


numbers = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-3)
vectors = st.lists(numbers, min_size=8, max_size=8).filter(any)


@given(vectors, vectors)
def test_a_packed_vector_keeps_its_direction(one: list[float], other: list[float]) -> None:
    """Cosines are accurate to three digits."""
    exact, packed = CosineSimilarity(), CosineSimilarity()
    exact.compare_and_add(one)
    packed.compare_and_add(unpack_vector(pack_vector(one)))
    similarity = packed.compare_and_add(unpack_vector(pack_vector(other)))
    assert similarity == pytest.approx(exact.compare_and_add(other), abs=2e-3)
