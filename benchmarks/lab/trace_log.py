"""The event log: what was recorded of a trace, as typed events, one trace a line of JSON.

The first line is a ``Recording``, which holds for all below it; every other line is a ``Trace``.
docs/laboratory.md describes each field. Places are counted in ``kept``, generated ids before the
place (the opening marker included where the model wrote it), and in ``position``, tokens of the
trace before it. Times are seconds since the request was sent.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from adjourn.lab.log_upgrade import upgrade

__all__ = [
    "VERSION",
    "BadTraces",
    "CheckpointReached",
    "CutExecuted",
    "EmbeddingCompleted",
    "LogEvent",
    "ProbeCompleted",
    "PromptReceived",
    "RecordingHeader",
    "StreamedChunk",
    "Trace",
    "TraceAppender",
    "load",
]

VERSION = 3
_OLDEST_VERSION = 2


class BadTraces(Exception):
    """A file that is no recording of this version; the message says what it is."""


class _EventBase(msgspec.Struct, frozen=True, omit_defaults=True):
    at: float


class PromptReceived(_EventBase, tag="prompt", frozen=True):
    """The engine has taken the prompt: its ids."""

    prompt_token_ids: tuple[int, ...]


class StreamedChunk(_EventBase, tag="chunk", frozen=True):
    """What the main stream sent at once. ``text`` is reasoning, ``answer`` what follows it;
    ``logprobs`` of the most probable tokens at each place, where they were asked for."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    answer: str = ""
    has_tool_calls: bool = False
    finish_reason: str | None = None
    logprobs: tuple[tuple[float, ...], ...] = ()

    @property
    def has_answer(self) -> bool:
        return self.has_tool_calls or self.answer != ""


class CheckpointReached(_EventBase, tag="checkpoint", frozen=True):
    """A checkpoint of this ``kind``; ``start`` is the place before the first token."""

    kind: str
    kept: int
    position: int
    cue: str = ""


class ProbeCompleted(_EventBase, tag="probe", frozen=True):
    """A probe came back: ``result`` is a ``ProbeResult`` or ``ProbeFailed``, written as a value,
    its probe within. ``asked``: when it was sent; ``decoded``: tokens that it took, where those are
    more than it shows."""

    sent_at: float
    kept: int
    position: int
    result: dict[str, Any]
    prefilled_tokens: int = 0
    decoded_tokens: int = 0


class EmbeddingCompleted(_EventBase, tag="embedding", frozen=True):
    """A step came back from the embedder: its vector in halves, empty where it failed."""

    sent_at: float
    kept: int
    position: int
    vector: bytes


class CutExecuted(_EventBase, tag="cut", frozen=True):
    """A cut was carried out here beside the trace: the answer that a client would have got.
    ``began``: seconds until its first chunk."""

    sent_at: float
    first_chunk_seconds: float
    kept: int
    position: int
    answer: str
    tokens: int
    finish_reason: str | None = None


LogEvent = (
    PromptReceived
    | StreamedChunk
    | CheckpointReached
    | ProbeCompleted
    | EmbeddingCompleted
    | CutExecuted
)


class Trace(msgspec.Struct, tag="trace", frozen=True):
    """One sample of one prompt, from the request to its end, in the order in which it happened."""

    prompt_id: str
    sample_index: int
    messages: list[dict[str, Any]]
    gold: str | None
    events: list[LogEvent]


class RecordingHeader(msgspec.Struct, tag="recording", frozen=True):
    """What was asked, of which model. ``marks``, ``needs`` and ``probes`` are written values;
    ``body`` are the request's own fields; ``embedder`` is named where there was one."""

    version: int
    model: str
    dialect: dict[str, Any]
    needs: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    body: dict[str, Any]
    engine_version: str = ""
    embedder_name: str = ""


_decode_recording = msgspec.json.Decoder(RecordingHeader).decode
_decode_trace = msgspec.json.Decoder(Trace).decode


class _HeaderVersion(msgspec.Struct, tag="recording"):
    version: int


def load(path: Path) -> tuple[RecordingHeader, Iterator[Trace]]:
    """The recording and its traces, read as they are asked for. A last line that was torn is no
    trace. Raises BadTraces."""
    try:
        with path.open("rb") as file:
            return _read_header(path, file.readline()), _read_traces(path)
    except OSError as error:
        raise BadTraces(f"{path}: {error.strerror}") from None


def _read_header(path: Path, line: bytes) -> RecordingHeader:
    try:
        version = msgspec.json.decode(line, type=_HeaderVersion).version
        if version == _OLDEST_VERSION:
            return msgspec.convert(upgrade(msgspec.json.decode(line)), RecordingHeader)
        if version != VERSION:
            raise BadTraces(f"{path} is of version {version}, this laboratory reads {VERSION}")
        return _decode_recording(line)
    except msgspec.MsgspecError as error:
        raise BadTraces(f"{path} does not begin with a recording's line: {error}") from None


def _read_traces(path: Path) -> Iterator[Trace]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                continue
            try:
                yield _decode_trace(line)
            except msgspec.MsgspecError as error:
                if not line.endswith(b"\n"):
                    return
                raise BadTraces(f"{path}, line {number}: {error}") from None


class TraceAppender:
    """Add traces to a file; one process at a time. ``done`` are the (prompt, sample) it holds.

    A line is written at once, so whoever is killed loses what was not yet written and no more; a
    torn last line is taken off when the file is opened again. Raises BadTraces where the file is
    another recording's.
    """

    def __init__(self, path: Path, recording: RecordingHeader) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file_descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.recorded_samples = self._open_existing(path, recording)
        except BlockingIOError:
            os.close(self._file_descriptor)
            raise BadTraces(f"{path} is being recorded by another process") from None
        except BaseException:
            os.close(self._file_descriptor)
            raise

    def _open_existing(self, path: Path, recording: RecordingHeader) -> set[tuple[str, int]]:
        _repair_last_line(path, self._file_descriptor)
        if os.fstat(self._file_descriptor).st_size == 0:
            self._write_line(recording)
            return set()
        old, traces = load(path)
        for name in RecordingHeader.__struct_fields__:
            if (before := getattr(old, name)) != (now := getattr(recording, name)):
                raise BadTraces(
                    f"{path} was recorded with another {name} ({before}, now {now}): "
                    "choose another file"
                )
        return {(trace.prompt_id, trace.sample_index) for trace in traces}

    def add(self, trace: Trace) -> None:
        self._write_line(trace)
        self.recorded_samples.add((trace.prompt_id, trace.sample_index))

    def _write_line(self, line: Trace | RecordingHeader) -> None:
        data = memoryview(msgspec.json.encode(line) + b"\n")
        while data:
            data = data[os.write(self._file_descriptor, data) :]

    def close(self) -> None:
        os.close(self._file_descriptor)


def _repair_last_line(path: Path, file: int) -> None:
    """Take a torn last line off; one that lacks nothing but its end gets that."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    try:
        msgspec.json.decode(content[whole:], type=Trace | RecordingHeader)
        os.write(file, b"\n")
    except msgspec.MsgspecError:
        os.ftruncate(file, whole)
