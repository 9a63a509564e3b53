"""Hand-made recordings for the tests, in the small dialect of the policy tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adjourn.lab import serialization
from adjourn.lab.replay_trace import ReplayTrace
from adjourn.lab.trace_log import (
    VERSION,
    CheckpointReached,
    LogEvent,
    ProbeCompleted,
    PromptReceived,
    RecordingHeader,
    StreamedChunk,
    Trace,
    TraceAppender,
)
from adjourn.policies.events import Probe
from adjourn.policies.policy import Needs
from tests.policies.session_helpers import DIALECT, END, PROMPT, probe_result

__all__ = [
    "HEADER",
    "SECONDS_PER_TOKEN",
    "make_replay_trace",
    "probe_completed",
    "stream_events",
    "trace",
    "write_log",
]

SECONDS_PER_TOKEN = 0.01
"""Of the main stream."""
HEADER = RecordingHeader(
    version=VERSION,
    model="made",
    dialect=serialization.to_json_value(DIALECT),
    needs=serialization.to_json_value([Needs(cues=True)]),
    probes=serialization.to_json_value([Probe()]),
    body={"temperature": 0.6},
)


def stream_events(texts: Sequence[str], answer: str = "\\boxed{7}") -> list[LogEvent]:
    """The prompt, one token for each text, the end marker, the answer."""
    events: list[LogEvent] = [PromptReceived(0.0, PROMPT)]
    events += [
        StreamedChunk(SECONDS_PER_TOKEN * i, text, (30 + i,))
        for i, text in enumerate(texts, start=1)
    ]
    at = SECONDS_PER_TOKEN * (len(texts) + 1)
    events.append(StreamedChunk(at, "", (END,)))
    events.append(StreamedChunk(at + SECONDS_PER_TOKEN, "", (98,), answer))
    events.append(StreamedChunk(at + 2 * SECONDS_PER_TOKEN, "", (99,), finish_reason="stop"))
    return events


def probe_completed(
    position: int,
    answer: str = "7",
    probability: float = 0.99,
    *,
    delay_seconds: float = SECONDS_PER_TOKEN / 2,
    probe: Probe | None = None,
) -> ProbeCompleted:
    """A probe at ``position`` of a trace with one token per chunk, sent with the next token."""
    sent_at = SECONDS_PER_TOKEN * (position + 1)
    result = probe_result(
        position, answer, probability, probe, seconds=delay_seconds, at=sent_at + delay_seconds
    )
    return ProbeCompleted(
        sent_at + delay_seconds,
        sent_at,
        position,
        position,
        serialization.to_json_value(result),
    )


def trace(
    texts: Sequence[str],
    probes: Sequence[ProbeCompleted] = (),
    *,
    prompt: str = "p",
    sample: int = 0,
    gold: str | None = "7",
    **answer: Any,
) -> Trace:
    checkpoints = [
        CheckpointReached(p.sent_at, "cue" if p.position else "start", p.kept, p.position)
        for p in probes
    ]
    events = sorted(
        [*stream_events(texts, **answer), *probes, *checkpoints], key=lambda event: event.at
    )
    return Trace(prompt, sample, [{"role": "user", "content": "?"}], gold, events)


def make_replay_trace(
    texts: Sequence[str], probes: Sequence[ProbeCompleted] = (), **options: Any
) -> ReplayTrace:
    return ReplayTrace(trace(texts, probes, **options), DIALECT)


def write_log(path: Path, traces: Sequence[Trace], recording: RecordingHeader = HEADER) -> Path:
    appender = TraceAppender(path, recording)
    for one in traces:
        appender.add(one)
    appender.close()
    return path
