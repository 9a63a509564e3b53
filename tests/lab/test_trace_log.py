"""The log file: complete traces are kept, a torn end is repaired, other files are refused."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.lab import serialization
from adjourn.lab.trace_log import BadTraces, TraceAppender, load
from adjourn.policies.events import Checkpoint, Probe, ProbeFailed
from adjourn.policies.policy import Needs
from adjourn.policies.text.dialect import builtin_dialects
from tests.lab.trace_factory import HEADER, probe_completed, trace, write_log
from tests.policies.session_helpers import DIALECT, probe_result

TRACES = [
    trace([" a", " b\n", "Wait"], [probe_completed(2)], prompt="p", sample=number, gold=gold)
    for number, gold in enumerate(["7", None, "é\n{"])
]
CONTENT = b"".join(msgspec.json.encode(line) + b"\n" for line in (HEADER, *TRACES))


@given(st.integers(0, len(CONTENT)))
def test_recording_continues_in_a_file_torn_anywhere(torn: int) -> None:
    """Complete traces stay, the torn one is recorded again, and the file equals an untorn one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.jsonl"
        path.write_bytes(CONTENT[:torn])
        appender = TraceAppender(path, HEADER)
        # A line that lacks only its newline is complete. The first line is the header.
        ends = [index for index, byte in enumerate(CONTENT) if byte == ord("\n")]
        assert len(appender.recorded_samples) == sum(torn >= end for end in ends[1:])
        for one in TRACES:
            if (one.prompt_id, one.sample_index) not in appender.recorded_samples:
                appender.add(one)
        appender.close()
        assert path.read_bytes() == CONTENT


@given(st.integers(0, len(CONTENT)))
def test_a_torn_file_is_readable(torn: int) -> None:
    """All complete traces are read, also during a recording or after a kill."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.jsonl"
        path.write_bytes(CONTENT[:torn])
        if torn < CONTENT.index(b"\n"):
            with pytest.raises(BadTraces):
                load(path)
            return
        _, traces = load(path)
        assert list(traces) == TRACES[: len(list(load(path)[1]))]


def test_traces_round_trip(tmp_path: Path) -> None:
    """With every field of every event."""
    recording, traces = load(write_log(tmp_path / "t.jsonl", TRACES))
    assert recording == HEADER
    assert list(traces) == TRACES


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    """Only an incomplete last line may be skipped."""
    path = write_log(tmp_path / "t.jsonl", TRACES)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[2:]]))
    with pytest.raises(BadTraces, match="line 3"):
        list(load(path)[1])


@pytest.mark.parametrize("version", [0, 1, 99])
def test_an_unknown_version_is_refused(tmp_path: Path, version: int) -> None:
    """The message has this version and the readable ones, whatever else the line has."""
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"type":"recording","version":{version},"new":[]}}\n')
    with pytest.raises(BadTraces, match=f"has log version {version}, but .* reads 2 and 3"):
        load(path)


def test_a_file_with_another_header_is_not_appended_to(tmp_path: Path) -> None:
    """The message names the field that differs, and the file is not changed."""
    path = write_log(tmp_path / "t.jsonl", TRACES)
    before = path.read_bytes()
    other = msgspec.structs.replace(HEADER, body={"temperature": 1.0})
    with pytest.raises(BadTraces, match="another body"):
        TraceAppender(path, other)
    assert before == path.read_bytes()


def test_two_processes_cannot_append_at_once(tmp_path: Path) -> None:
    """The second is refused until the first has closed the file."""
    path = tmp_path / "t.jsonl"
    first = TraceAppender(path, HEADER)
    with pytest.raises(BadTraces, match="another process"):
        TraceAppender(path, HEADER)
    first.close()
    TraceAppender(path, HEADER).close()


@pytest.mark.parametrize(
    "value",
    [
        Probe("answer", 5),
        probe_result(3, "1/2"),
        ProbeFailed(Probe(), 4, "timeout", 0.5),
        Checkpoint("cue", 3, 0.1, "Wait"),
        Needs(cues=True, interval=32),
        probe_result(
            3,
            probe=Probe(top_logprobs=2, score_end=True),
            top_logprobs=((-0.1, -0.2),),
            end_logprob=-1.5,
        ),
        next(iter(builtin_dialects().values())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_serialized_value_round_trips(value: object) -> None:
    """Through JSON, to an equal value."""
    document = msgspec.json.decode(msgspec.json.encode(serialization.to_json_value(value)))
    assert value == serialization.from_json_value(document)


@pytest.mark.parametrize("ids", [(5, 1, 9), (5, 6), (1, 2), ()])
def test_a_tokenized_dialect_round_trips(ids: tuple[int, ...]) -> None:
    """Its matcher finds the same markers."""
    read = serialization.from_json_value(
        msgspec.json.decode(msgspec.json.encode(serialization.to_json_value(DIALECT)))
    )
    assert replace(read, matcher=DIALECT.matcher) == DIALECT
    assert read.matcher.markers == DIALECT.matcher.markers
    assert read.matcher.last_kind(ids) == DIALECT.matcher.last_kind(ids)


@pytest.mark.parametrize("document", [{"type": "Nothing"}, {"type": "Probe", "colour": "red"}])
def test_an_unknown_class_or_field_is_refused(document: object) -> None:
    """With an error that names it."""
    with pytest.raises(serialization.BadValue, match=r"Nothing|colour"):
        serialization.from_json_value(document)
