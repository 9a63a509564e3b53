"""A recording of log version 2, written by the code of that version, stays readable."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from adjourn.lab import serialization
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.trace_log import (
    BadTraces,
    CheckpointReached,
    CutExecuted,
    EmbeddingCompleted,
    ProbeCompleted,
    PromptReceived,
    RecordingHeader,
    StreamedChunk,
    Trace,
    TraceAppender,
    load,
)
from adjourn.policies.events import Probe, ProbeFailed, ProbeResult
from adjourn.policies.evidence.hidden_states import HiddenStates, Layer
from adjourn.policies.policy import Needs
from tests.lab.trace_factory import HEADER
from tests.policies.session_helpers import DIALECT, END, PROMPT

RECORDING = Path(__file__).with_name("version2.jsonl")
END_PROBE = Probe("", 1, close_trace=False, score_end=True)
NEXT_TOKEN_PROBE = Probe("", 1, top_logprobs=20)
STATE_PROBE = Probe("", 1, close_trace=False, hidden_states=True)
NEEDS = Needs(
    cues=True,
    interval=32,
    end_logprob=True,
    min_checkpoints=3,
    reasoning_chunks=True,
    logprobs=2,
    embeddings=True,
)


def completed(result: ProbeResult | ProbeFailed, *tokens: int) -> ProbeCompleted:
    position, written = result.position, serialization.to_json_value(result)
    return ProbeCompleted(result.at, 0.02, position, position, written, *tokens)


def next_token_result(probe: Probe, at: float, **fields: object) -> ProbeResult:
    return ProbeResult(probe, 1, " b", (" b",), (-0.1,), False, 0.01, at, **fields)  # type: ignore[arg-type]


STATES = HiddenStates((2, 5), 1, b"\x80?\x00@")
TRACE = Trace(
    "p",
    1,
    [{"role": "user", "content": "opened?"}],
    "7",
    [
        PromptReceived(0.0, PROMPT),
        StreamedChunk(0.01, " a", (30,), logprobs=((-0.1, -2.0),)),
        CheckpointReached(0.02, "cue", 1, 1, "Wait"),
        StreamedChunk(0.02, "Wait", (31,), logprobs=((-0.3, -1.5),)),
        completed(
            ProbeResult(Probe(), 1, "7}", ("7", "}"), (-0.1, -0.2), True, 0.01, 0.03),
            5,
            3,
        ),
        completed(next_token_result(END_PROBE, 0.04, end_logprob=-1.5)),
        completed(next_token_result(NEXT_TOKEN_PROBE, 0.05, top_logprobs=((-0.1, -2.0),))),
        completed(next_token_result(STATE_PROBE, 0.06, hidden_states=STATES)),
        completed(ProbeFailed(Probe(), 2, "timeout", 0.07)),
        EmbeddingCompleted(0.08, 0.07, 1, 1, b"\x00<\x00\xb8"),
        CutExecuted(0.09, 0.08, 0.005, 1, 1, "\\boxed{7}", 4, "stop"),
        StreamedChunk(0.1, "", (END,)),
        StreamedChunk(0.11, "", (98,), "\\boxed{7}", True),
        StreamedChunk(0.12, "", (99,), finish_reason="stop"),
    ],
)


def through_json(value: Trace | RecordingHeader) -> Trace | RecordingHeader:
    """Tuples in serialized values become lists."""
    return msgspec.json.decode(msgspec.json.encode(value), type=type(value))


def test_version_2_is_read_as_its_version_3_twin() -> None:
    """The header keeps the number 2; everything else equals what version 3 would have written."""
    header, traces = load(RECORDING)
    twin = msgspec.structs.replace(
        HEADER,
        version=2,
        needs=serialization.to_json_value([NEEDS]),
        probes=serialization.to_json_value([Probe(), END_PROBE, NEXT_TOKEN_PROBE, STATE_PROBE]),
        engine_version="0.1",
        embedder_name="small",
    )
    assert header == through_json(twin)
    assert list(traces) == [through_json(TRACE)]


def test_version_2_can_be_replayed() -> None:
    """Its serialized values become values of today's classes."""
    dataset = ReplayDataset(RECORDING)
    (trace,) = dataset.traces
    assert dataset.dialect.definition == DIALECT.definition
    assert dataset.dialect.matcher.markers == DIALECT.matcher.markers
    assert (dataset.logprob_count, dataset.has_embeddings) == (2, True)
    assert dataset.hidden_state_layers == {Layer(2, 1), Layer(5, 1)}
    assert trace.trial_answer_at(1).answer == "7"
    found = trace.results.find_probe(END_PROBE, 1, 1)
    assert found is not None
    assert isinstance(found.result, ProbeResult)
    assert found.result.end_logprob == -1.5


@pytest.mark.parametrize("missing_bytes", [0, 1, 5])
def test_traces_are_not_appended_to_version_2(tmp_path: Path, missing_bytes: int) -> None:
    """The message names both versions, and the file is not changed, also not repaired."""
    content = RECORDING.read_bytes()
    content = content[: len(content) - missing_bytes]
    path = tmp_path / "traces.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadTraces, match="log version 2 and cannot be continued in version 3"):
        TraceAppender(path, load(path)[0])
    assert path.read_bytes() == content


def test_an_incomplete_last_line_of_version_2_is_skipped(tmp_path: Path) -> None:
    """As in version 3; a broken line before it is named."""
    lines = RECORDING.read_bytes().splitlines(keepends=True)
    path = tmp_path / "traces.jsonl"
    path.write_bytes(lines[0] + lines[1] + lines[1][:-9])
    assert len(list(load(path)[1])) == 1
    for broken in (b"{}\n", b"[]\n", b'{"type":"trace"}\n'):
        path.write_bytes(lines[0] + broken + lines[1])
        with pytest.raises(BadTraces, match="line 2"):
            list(load(path)[1])
