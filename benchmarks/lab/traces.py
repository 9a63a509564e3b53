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

__all__ = [
    "VERSION",
    "Appender",
    "BadTraces",
    "Drawn",
    "Event",
    "Opened",
    "Piece",
    "Place",
    "Recording",
    "Represented",
    "Served",
    "Trace",
    "load",
]

VERSION = 2


class BadTraces(Exception):
    """A file that is no recording of this version; the message says what it is."""


class _Event(msgspec.Struct, frozen=True, omit_defaults=True):
    at: float


class Opened(_Event, tag="opened", frozen=True):
    """The engine has taken the prompt: its ids."""

    ids: tuple[int, ...]


class Piece(_Event, tag="piece", frozen=True):
    """What the main stream sent at once. ``text`` is reasoning, ``answer`` what follows it;
    ``logprobs`` of the most probable tokens at each place, where they were asked for."""

    text: str = ""
    ids: tuple[int, ...] = ()
    answer: str = ""
    calls: bool = False
    ending: str | None = None
    logprobs: tuple[tuple[float, ...], ...] = ()

    @property
    def answering(self) -> bool:
        return self.calls or self.answer != ""


class Place(_Event, tag="place", frozen=True):
    """A checkpoint of this ``kind``; ``start`` is the place before the first token."""

    kind: str
    kept: int
    position: int
    cue: str = ""


class Drawn(_Event, tag="drawn", frozen=True):
    """A probe came back: ``result`` is a ``ProbeResult`` or ``ProbeFailed``, written as a value,
    its probe within. ``asked``: when it was sent; ``decoded``: tokens that it took, where those are
    more than it shows."""

    asked: float
    kept: int
    position: int
    result: dict[str, Any]
    prefilled: int = 0
    decoded: int = 0


class Represented(_Event, tag="represented", frozen=True):
    """A step came back from the embedder: its vector in halves, empty where it failed."""

    asked: float
    kept: int
    position: int
    vector: bytes


class Served(_Event, tag="served", frozen=True):
    """A cut was carried out here beside the trace: the answer that a client would have got.
    ``began``: seconds until its first chunk."""

    asked: float
    began: float
    kept: int
    position: int
    answer: str
    tokens: int
    ending: str | None = None


Event = Opened | Piece | Place | Drawn | Represented | Served


class Trace(msgspec.Struct, tag="trace", frozen=True):
    """One sample of one prompt, from the request to its end, in the order in which it happened."""

    prompt: str
    sample: int
    messages: list[dict[str, Any]]
    gold: str | None
    events: list[Event]


class Recording(msgspec.Struct, tag="recording", frozen=True):
    """What was asked, of which model. ``marks``, ``needs`` and ``probes`` are written values;
    ``body`` are the request's own fields; ``embedder`` is named where there was one."""

    version: int
    model: str
    marks: dict[str, Any]
    needs: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    body: dict[str, Any]
    engine: str = ""
    embedder: str = ""


_decode_recording = msgspec.json.Decoder(Recording).decode
_decode_trace = msgspec.json.Decoder(Trace).decode


class _Version(msgspec.Struct, tag="recording"):
    version: int


def load(path: Path) -> tuple[Recording, Iterator[Trace]]:
    """The recording and its traces, read as they are asked for. A last line that was torn is no
    trace. Raises BadTraces."""
    try:
        with path.open("rb") as file:
            return _header(path, file.readline()), _traces(path)
    except OSError as error:
        raise BadTraces(f"{path}: {error.strerror}") from None


def _header(path: Path, line: bytes) -> Recording:
    try:
        version = msgspec.json.decode(line, type=_Version).version
        if version != VERSION:
            raise BadTraces(f"{path} is of version {version}, this laboratory reads {VERSION}")
        return _decode_recording(line)
    except msgspec.MsgspecError as error:
        raise BadTraces(f"{path} does not begin with a recording's line: {error}") from None


def _traces(path: Path) -> Iterator[Trace]:
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


class Appender:
    """Add traces to a file; one process at a time. ``done`` are the (prompt, sample) it holds.

    A line is written at once, so whoever is killed loses what was not yet written and no more; a
    torn last line is taken off when the file is opened again. Raises BadTraces where the file is
    another recording's.
    """

    def __init__(self, path: Path, recording: Recording) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.done = self._resume(path, recording)
        except BlockingIOError:
            os.close(self._file)
            raise BadTraces(f"{path} is being recorded by another process") from None
        except BaseException:
            os.close(self._file)
            raise

    def _resume(self, path: Path, recording: Recording) -> set[tuple[str, int]]:
        _mend(path, self._file)
        if os.fstat(self._file).st_size == 0:
            self._write(recording)
            return set()
        old, traces = load(path)
        for name in Recording.__struct_fields__:
            if (before := getattr(old, name)) != (now := getattr(recording, name)):
                raise BadTraces(
                    f"{path} was recorded with another {name} ({before}, now {now}): "
                    "choose another file"
                )
        return {(trace.prompt, trace.sample) for trace in traces}

    def add(self, trace: Trace) -> None:
        self._write(trace)
        self.done.add((trace.prompt, trace.sample))

    def _write(self, line: Trace | Recording) -> None:
        data = memoryview(msgspec.json.encode(line) + b"\n")
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        os.close(self._file)


def _mend(path: Path, file: int) -> None:
    """Take a torn last line off; one that lacks nothing but its end gets that."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    try:
        msgspec.json.decode(content[whole:], type=Trace | Recording)
        os.write(file, b"\n")
    except msgspec.MsgspecError:
        os.ftruncate(file, whole)
