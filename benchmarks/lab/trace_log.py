"""The log of recorded traces: JSON lines, each trace a list of typed events.

The first line is a ``RecordingHeader``, which applies to all traces; every other line is a
``Trace``. docs/laboratory.md describes each field. A place in a trace has two coordinates:
``kept``, the generated ids before it (with the opening marker if the model wrote it), and
``position``, the tokens of the trace before it. Times are seconds since the request was sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from adjourn.lab.log_upgrade import upgrade_line

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
_OLD_VERSION = 2
"""Still read, by ``log_upgrade``; no traces are appended to it."""


class BadTraces(Exception):
    """A file that is not a readable recording; the message says why."""


class _EventBase(msgspec.Struct, frozen=True, omit_defaults=True):
    at: float


class PromptReceived(_EventBase, tag="prompt", frozen=True):
    """The engine accepted the prompt; ``prompt_token_ids`` are its ids."""

    prompt_token_ids: tuple[int, ...]


class StreamedChunk(_EventBase, tag="chunk", frozen=True):
    """A chunk of the main stream: reasoning ``text``, ``answer`` text, and for each token the
    ``logprobs`` of its most probable candidates if they were requested."""

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
    """A checkpoint of this ``kind``; ``start`` is before the first token."""

    kind: str
    kept: int
    position: int
    cue: str = ""


class ProbeCompleted(_EventBase, tag="probe", frozen=True):
    """A probe returned. ``result``: a serialized ``ProbeResult`` or ``ProbeFailed`` with its probe.
    ``decoded_tokens``: that it cost, if those are more than the result shows."""

    sent_at: float
    kept: int
    position: int
    result: dict[str, Any]
    prefilled_tokens: int = 0
    decoded_tokens: int = 0


class EmbeddingCompleted(_EventBase, tag="embedding", frozen=True):
    """The embedder returned: the packed ``vector`` of a step, empty if it failed."""

    sent_at: float
    kept: int
    position: int
    vector: bytes


class CutExecuted(_EventBase, tag="cut", frozen=True):
    """A cut was executed here in a second request: the answer that a client would have received.
    ``first_chunk_seconds``: from ``sent_at`` to its first chunk."""

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
    """One sample of one prompt. ``events`` are in the order of their times."""

    prompt_id: str
    sample_index: int
    messages: list[dict[str, Any]]
    gold: str | None
    events: list[LogEvent]


class RecordingHeader(msgspec.Struct, tag="recording", frozen=True):
    """How the traces were recorded. ``dialect``, ``needs`` and ``probes`` are serialized values;
    ``body`` has the fields of each request; ``embedder_name`` is empty without an embedder."""

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
    """The header and the traces, which are read lazily. An incomplete last line is skipped. Raises
    BadTraces, also during the iteration."""
    try:
        with path.open("rb") as file:
            header = _read_header(path, file.readline())
    except OSError as error:
        raise BadTraces(f"{path}: {error.strerror}") from None
    decode = _decode_trace if header.version == VERSION else _decode_old_trace
    return header, _read_traces(path, decode)


def _read_header(path: Path, line: bytes) -> RecordingHeader:
    try:
        version = msgspec.json.decode(line, type=_HeaderVersion).version
        if version == _OLD_VERSION:
            return msgspec.convert(upgrade_line(msgspec.json.decode(line)), RecordingHeader)
        if version != VERSION:
            raise BadTraces(
                f"{path} has log version {version}, but this version of adjourn reads "
                f"{_OLD_VERSION} and {VERSION}"
            )
        return _decode_recording(line)
    except (msgspec.MsgspecError, LookupError) as error:
        raise BadTraces(f"{path} does not begin with the header of a recording: {error}") from None


def _decode_old_trace(line: bytes) -> Trace:
    """Raises msgspec.MsgspecError."""
    try:
        document = upgrade_line(msgspec.json.decode(line, type=dict[str, Any]))
    except (LookupError, TypeError, AttributeError) as error:
        raise msgspec.ValidationError(f"not a trace: {error!r}") from None
    return msgspec.convert(document, Trace)


def _read_traces(path: Path, decode: Callable[[bytes], Trace]) -> Iterator[Trace]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                continue
            try:
                yield decode(line)
            except msgspec.MsgspecError as error:
                if not line.endswith(b"\n"):
                    return
                raise BadTraces(f"{path}, line {number}: {error}") from None


class TraceAppender:
    """Appends traces to a file; holds a lock, so that one process at a time does.

    Each trace is written as one line at once: a process that is killed loses only its unfinished
    traces, and an incomplete last line is removed when the file is opened again.
    ``recorded_samples``: the (prompt id, sample index) pairs in the file, kept up to date by
    ``add``. Raises BadTraces if the file belongs to a recording with another header.
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
        _refuse_old_version(path)
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


def _refuse_old_version(path: Path) -> None:
    """Before anything else, since the repair of the last line knows only VERSION."""
    with contextlib.suppress(msgspec.MsgspecError), path.open("rb") as file:
        version = msgspec.json.decode(file.readline(), type=_HeaderVersion).version
        if version != VERSION:
            raise BadTraces(
                f"{path} has log version {version} and cannot be continued in version {VERSION}: "
                "choose another file"
            )


def _repair_last_line(path: Path, file: int) -> None:
    """Remove an incomplete last line; end a last line that lacks only its newline."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete == len(content):
        return
    try:
        msgspec.json.decode(content[complete:], type=Trace | RecordingHeader)
        os.write(file, b"\n")
    except msgspec.MsgspecError:
        os.ftruncate(file, complete)
