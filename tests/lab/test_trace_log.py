"""The log on disk: what is whole is kept, what is torn is mended, what is strange is refused."""

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
WHOLE = b"".join(msgspec.json.encode(line) + b"\n" for line in (HEADER, *TRACES))


@given(st.integers(0, len(WHOLE)))
def test_a_file_that_was_torn_anywhere_goes_on(torn: int) -> None:
    """Whole traces stay, the torn one is taken again, and the file ends as if nothing had been."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.jsonl"
        path.write_bytes(WHOLE[:torn])
        appender = TraceAppender(path, HEADER)
        # A line that lacks nothing but its end is whole; the first is no trace.
        ends = [index for index, byte in enumerate(WHOLE) if byte == ord("\n")]
        assert len(appender.recorded_samples) == sum(torn >= end for end in ends[1:])
        for one in TRACES:
            if (one.prompt_id, one.sample_index) not in appender.recorded_samples:
                appender.add(one)
        appender.close()
        assert path.read_bytes() == WHOLE


@given(st.integers(0, len(WHOLE)))
def test_a_torn_file_can_be_read(torn: int) -> None:
    """While somebody records, or after a kill, the whole traces are there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.jsonl"
        path.write_bytes(WHOLE[:torn])
        if torn < WHOLE.index(b"\n"):
            with pytest.raises(BadTraces):
                load(path)
            return
        _, traces = load(path)
        assert list(traces) == TRACES[: len(list(load(path)[1]))]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Every field of every event comes back."""
    recording, traces = load(write_log(tmp_path / "t.jsonl", TRACES))
    assert recording == HEADER
    assert list(traces) == TRACES


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    """A line that was not torn but broken is no trace to pass over."""
    path = write_log(tmp_path / "t.jsonl", TRACES)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[2:]]))
    with pytest.raises(BadTraces, match="line 3"):
        list(load(path)[1])


@pytest.mark.parametrize("version", [0, 1, 99])
def test_an_unknown_version_is_refused(tmp_path: Path, version: int) -> None:
    """It says which version it is and which are read, whatever else the line holds."""
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"type":"recording","version":{version},"new":[]}}\n')
    with pytest.raises(BadTraces, match=f"has log version {version}, but .* reads 2 and 3"):
        load(path)


def test_another_recording_is_not_added_to(tmp_path: Path) -> None:
    """The message names what differs, and the file stays as it is."""
    path = write_log(tmp_path / "t.jsonl", TRACES)
    before = path.read_bytes()
    other = msgspec.structs.replace(HEADER, body={"temperature": 1.0})
    with pytest.raises(BadTraces, match="another body"):
        TraceAppender(path, other)
    assert before == path.read_bytes()


def test_two_do_not_write_at_once(tmp_path: Path) -> None:
    """The second is told so, and may begin when the first has ended."""
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
def test_a_value_comes_back(value: object) -> None:
    """Through JSON, equal to what it was."""
    written = msgspec.json.decode(msgspec.json.encode(serialization.to_json_value(value)))
    assert value == serialization.from_json_value(written)


@pytest.mark.parametrize("ids", [(5, 1, 9), (5, 6), (1, 2), ()])
def test_marks_come_back(ids: tuple[int, ...]) -> None:
    """With markers that find what they found."""
    read = serialization.from_json_value(
        msgspec.json.decode(msgspec.json.encode(serialization.to_json_value(DIALECT)))
    )
    assert replace(read, matcher=DIALECT.matcher) == DIALECT
    assert read.matcher.markers == DIALECT.matcher.markers
    assert read.matcher.last_kind(ids) == DIALECT.matcher.last_kind(ids)


@pytest.mark.parametrize("document", [{"type": "Nothing"}, {"type": "Probe", "colour": "red"}])
def test_a_value_that_nobody_knows(document: object) -> None:
    """A class or a field of another version is an error that names it."""
    with pytest.raises(serialization.BadValue, match=r"Nothing|colour"):
        serialization.from_json_value(document)
