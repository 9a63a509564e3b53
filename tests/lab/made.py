"""Recordings made up for the laboratory's tests, in the core tests' small dialect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lab import values
from benchmarks.lab.tape import Tape
from benchmarks.lab.traces import (
    VERSION,
    Appender,
    Drawn,
    Event,
    Opened,
    Piece,
    Place,
    Recording,
    Trace,
)
from policies.events import Probe
from policies.policy import Needs
from tests.policies.lab import END, MARKS, PROMPT, result

__all__ = ["PACE", "RECORDING", "drawn", "file", "pieces", "tape", "trace"]

PACE = 0.01
"""Seconds a token."""
RECORDING = Recording(
    version=VERSION,
    model="made",
    marks=values.write(MARKS),
    needs=values.write([Needs(cues=True)]),
    probes=values.write([Probe()]),
    body={"temperature": 0.6},
)


def pieces(texts: Sequence[str], answer: str = "\\boxed{7}") -> list[Event]:
    """The prompt, a token a text, the end of the trace, the answer."""
    events: list[Event] = [Opened(0.0, PROMPT)]
    events += [Piece(PACE * i, text, (30 + i,)) for i, text in enumerate(texts, start=1)]
    at = PACE * (len(texts) + 1)
    events.append(Piece(at, "", (END,)))
    events.append(Piece(at + PACE, "", (98,), answer))
    events.append(Piece(at + 2 * PACE, "", (99,), ending="stop"))
    return events


def drawn(
    position: int,
    answer: str = "7",
    certainty: float = 0.99,
    *,
    after: float = PACE / 2,
    probe: Probe | None = None,
) -> Drawn:
    """A probe at ``position`` of a trace of a token a piece, sent as soon as it could be."""
    asked = PACE * (position + 1)
    made = result(position, answer, certainty, probe, seconds=after, at=asked + after)
    return Drawn(asked + after, asked, position, position, values.write(made))


def trace(
    texts: Sequence[str],
    draws: Sequence[Drawn] = (),
    *,
    prompt: str = "p",
    sample: int = 0,
    gold: str | None = "7",
    **answer: Any,
) -> Trace:
    places = [Place(d.asked, "cue" if d.position else "start", d.kept, d.position) for d in draws]
    events = sorted([*pieces(texts, **answer), *draws, *places], key=lambda event: event.at)
    return Trace(prompt, sample, [{"role": "user", "content": "?"}], gold, events)


def tape(texts: Sequence[str], draws: Sequence[Drawn] = (), **options: Any) -> Tape:
    return Tape(trace(texts, draws, **options), MARKS)


def file(path: Path, traces: Sequence[Trace], recording: Recording = RECORDING) -> Path:
    appender = Appender(path, recording)
    for one in traces:
        appender.add(one)
    appender.close()
    return path
