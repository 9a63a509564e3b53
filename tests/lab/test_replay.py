"""Replays: when results arrive, what they cost, and that merging chunks changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.lab import replay
from adjourn.lab.chunk_spans import ChunkSpan
from adjourn.lab.recorded_results import MAX_PROBE_OFFSET
from adjourn.lab.replay import Outcome, replay_trace
from adjourn.lab.replay_trace import ReplayTrace
from adjourn.lab.trace_log import CheckpointReached, ProbeCompleted, StreamedChunk, Trace
from adjourn.policies.events import Probe, ProbeFailed, ProbeResult
from adjourn.policies.evidence.answers import extract_final_answer
from adjourn.policies.registry import parse
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from tests.lab.trace_factory import (
    SECONDS_PER_TOKEN,
    make_replay_trace,
    probe_completed,
    stream_events,
)
from tests.policies.session_driver import VOCABULARY
from tests.policies.session_helpers import CLOSING, DIALECT, END, START, AlwaysProbe

SHORT_TRACE = [" a", " b", " c", " Wait", ",", " d", " e", " f", " g", " h", " i"]


def replay_policy(policy: str, trace: ReplayTrace, **options: Any) -> Outcome:
    return replay_trace(
        parse(policy), trace, DIALECT, options.pop("cost_model", AlwaysProbe()), **options
    )


def test_an_instant_probe_wastes_the_cue_and_the_next_token() -> None:
    """A cue is recognised with the token after it; both are after the cut."""
    outcome = replay_policy(
        "deer(gate=0)", make_replay_trace(SHORT_TRACE, [probe_completed(3)]), instant=True
    )
    assert (outcome.stopped, outcome.kept_tokens, outcome.wasted_tokens) == (True, 3, 2)
    assert (outcome.answer, outcome.correct, outcome.reason) == ("7", True, "confident")
    assert outcome.net_tokens == 3 + len(CLOSING) + 2 + 2 + outcome.probe_tokens


@pytest.mark.parametrize(("late", "more"), [(0.5, 0), (1.5, 1), (3.5, 3)])
def test_a_late_probe_wastes_the_tokens_until_its_result(late: float, more: int) -> None:
    """And those until the answer begins."""
    trace = make_replay_trace(
        SHORT_TRACE, [probe_completed(3, delay_seconds=late * SECONDS_PER_TOKEN)]
    )
    assert replay_policy("deer(gate=0)", trace).wasted_tokens == 2 + more
    assert (
        replay_policy("deer(gate=0)", trace, resume_seconds=2 * SECONDS_PER_TOKEN).wasted_tokens
        == 2 + more + 2
    )


def test_a_result_after_the_end_of_the_trace_stops_nothing() -> None:
    """The model ended its reasoning first."""
    outcome = replay_policy(
        "deer(gate=0)", make_replay_trace(SHORT_TRACE, [probe_completed(3, delay_seconds=99.0)])
    )
    assert not outcome.stopped
    assert (outcome.kept_tokens, outcome.answer) == (len(SHORT_TRACE), "7")


def test_a_gate_probe_is_answered_from_a_longer_probe() -> None:
    """deer's one-token probe gets the first token of the longer one, in a share of its time."""
    trace = make_replay_trace(SHORT_TRACE, [probe_completed(3)])
    outcome = replay_policy("deer", trace, instant=True)
    assert (outcome.stopped, outcome.probe_count, outcome.probe_tokens) == (True, 2, 1 + 2)
    gate = trace.results.find_probe(Probe(max_tokens=1), 3, 3)
    assert gate is not None
    assert isinstance(gate.result, ProbeResult)
    assert (gate.result.tokens, gate.result.text, gate.result.finished) == (("7",), "7", False)
    assert gate.delay_seconds == pytest.approx(SECONDS_PER_TOKEN / 4)


@given(st.integers(1, 30), st.text("0123456789", min_size=1, max_size=12), st.integers(1, 14))
def test_a_shorter_probe_gets_a_prefix(max_tokens: int, answer: str, recorded: int) -> None:
    """At most ``max_tokens`` tokens; no result if the recorded probe generated too few."""
    full = (*answer, "}")
    cut = full[:recorded]
    result = ProbeResult(
        Probe(max_tokens=recorded), 3, "".join(cut), cut, (-0.1,) * len(cut),
        len(full) <= recorded, 0.1, 0.1,
    )  # fmt: skip
    event = replace_result(probe_completed(3), result)
    found = make_replay_trace(SHORT_TRACE, [event]).results.find_probe(
        Probe(max_tokens=max_tokens), 3, 3
    )
    if max_tokens > recorded and len(full) > recorded:
        assert found is None
        return
    assert found is not None
    assert isinstance(found.result, ProbeResult)
    assert found.result.tokens == full[:max_tokens]
    assert found.result.finished == (len(full) <= max_tokens)
    assert len(found.result.logprobs) == len(found.result.tokens)


def replace_result(event: ProbeCompleted, result: ProbeResult | ProbeFailed) -> ProbeCompleted:
    from adjourn.lab import serialization

    return ProbeCompleted(
        event.at, event.sent_at, event.kept, event.position, serialization.to_json_value(result)
    )


@pytest.mark.parametrize(
    ("kept", "is_exact"), [(3, True), (3 + MAX_PROBE_OFFSET, False), (2, None)]
)
def test_a_result_from_a_few_tokens_before_is_used(kept: int, is_exact: bool | None) -> None:
    """Never one from after the place; ``is_exact`` tells it from one at the place."""
    found = make_replay_trace(SHORT_TRACE, [probe_completed(3)]).results.find_probe(
        Probe(), kept, kept
    )
    assert (None if found is None else found.is_exact) == is_exact
    assert found is None or found.result.position == kept
    assert (
        make_replay_trace(SHORT_TRACE, [probe_completed(3)]).results.find_probe(
            Probe(), 4 + MAX_PROBE_OFFSET, 4 + MAX_PROBE_OFFSET
        )
        is None
    )
    assert (
        make_replay_trace(SHORT_TRACE, [probe_completed(3)]).results.find_probe(
            Probe("other"), 3, 3
        )
        is None
    )


def test_a_recorded_failure_is_replayed() -> None:
    """The policy receives it and continues."""
    failed = replace_result(probe_completed(3), ProbeFailed(Probe(), 3, "timeout", 0.1))
    outcome = replay_policy("deer(gate=0)", make_replay_trace(SHORT_TRACE, [failed]))
    assert (outcome.stopped, outcome.probe_count, outcome.missing_probes) == (False, 1, 0)


def test_a_missing_result_is_counted() -> None:
    """The policy receives a failure."""
    outcome = replay_policy("deer(gate=0)", make_replay_trace(SHORT_TRACE, []))
    assert (outcome.stopped, outcome.probe_count, outcome.missing_probes) == (False, 1, 1)


def test_the_answer_after_a_cut_is_the_last_trial_answer() -> None:
    """A budget stops between two checkpoints, so the trial answer before it is used."""
    trace = make_replay_trace(
        [*SHORT_TRACE, *SHORT_TRACE], [probe_completed(3, "6"), probe_completed(14, "7")]
    )
    outcome = replay_policy("budget(max=8, grace=0)", trace)
    assert (outcome.kept_tokens, outcome.answer, outcome.correct) == (8, "6", False)
    assert trace.settled_position() == 14


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        (" B\n", "B"),
    ],
)
def test_the_final_answer_is_the_last_box(text: str, answer: str) -> None:
    """Without a box, the whole text."""
    assert extract_final_answer(text) == answer


def test_a_truncated_trace_is_not_complete() -> None:
    """By a token limit or by a broken stream."""
    whole = stream_events(SHORT_TRACE)
    assert ReplayTrace(Trace("p", 0, [], None, whole), DIALECT).is_complete
    limited = [*whole[:-1], StreamedChunk(1.0, "", (99,), finish_reason="length")]
    assert not ReplayTrace(Trace("p", 0, [], None, limited), DIALECT).is_complete
    assert not ReplayTrace(Trace("p", 0, [], None, whole[:5]), DIALECT).is_complete


POLICIES = (
    "deer(gate=0, gap=0)",
    "deer(gap=3)",
    "convergence(every=3, window=2, min_tokens=0)",
    "any_of(deer(threshold=0.8), convergence(every=5, window=2, min_tokens=4))",
    "all_of(deer(gate=0), budget(max=9))",
    "loop(repeats=2, min_tokens=2)",
    "first-try(easy=2, hard=2)",
    "any_of(deer(gate=0, gap=0), first-try(easy=1, hard=1))",
    "redundancy(min_steps=1, similarity=0.01)",
    "utility(at='sentence', patience=1)",
    "never",
)
ENDS = {".", "\n", "\n\n", ".\n\nThe", " It is 7. So", "answer is 7", '."', " " + "x" * 200}
TEXTS = st.sampled_from(sorted({*VOCABULARY.values(), *ENDS, " x", " y", "7", " "}))


@st.composite
def traces(draw: st.DrawFn) -> ReplayTrace:
    """Traces in chunks of several tokens, with and without a marker, probed at random places."""
    texts = draw(st.lists(TEXTS, min_size=1, max_size=60))
    sizes = draw(st.lists(st.integers(1, 4), min_size=len(texts), max_size=len(texts)))
    opened = draw(st.booleans())
    events = stream_events([])[:1]
    at, ids = 0.0, 0
    if not opened:
        events = [replace_prompt(events[0])]
        events.append(StreamedChunk(at, "", (START,)))
        ids = 1
    events.append(CheckpointReached(at, "start", ids, 0))
    for text, size in zip(texts, sizes, strict=True):
        at += SECONDS_PER_TOKEN * draw(st.sampled_from([0.0, 1.0, 1.0, 5.0]))
        events.append(StreamedChunk(at, text, tuple(range(30, 30 + size))))
        ids += size
        if draw(st.booleans()):
            lag = SECONDS_PER_TOKEN * draw(st.sampled_from([0.0, 0.5, 2.5, 20.0]))
            made = probe_completed(
                ids, draw(st.sampled_from("78")), draw(st.sampled_from([0.6, 0.9, 0.99]))
            )
            events.append(ProbeCompleted(at + lag, at, ids, ids, made.result))
    events += [
        StreamedChunk(at + SECONDS_PER_TOKEN, "", (END,)),
        StreamedChunk(at + SECONDS_PER_TOKEN, "", (98,), "\\boxed{7}", finish_reason="stop"),
    ]
    return ReplayTrace(Trace("p", 0, [], None, sorted(events, key=lambda e: e.at)), DIALECT)


def replace_prompt(event: Any) -> Any:
    return type(event)(event.at, (5, 6))


class LoggedSession(Session):
    """Logs its orders."""

    logs: list[list[Any]] = []  # noqa: RUF012

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__(*values, **options)
        self.log: list[Any] = []
        self.logs.append(self.log)

    def feed(self, *values: Any, **options: Any) -> Any:
        return self._note(super().feed(*values, **options))

    def on_probe_result(self, *values: Any, **options: Any) -> Any:
        return self._note(super().on_probe_result(*values, **options))

    def _note(self, command: Any) -> Any:
        if command is not None:
            self.log.append(command)
        return command


@given(
    traces(),
    st.sampled_from(POLICIES),
    st.booleans(),
    st.sampled_from([0.0, 2.5 * SECONDS_PER_TOKEN]),
)
def test_merging_chunks_changes_nothing(
    trace: ReplayTrace, policy: str, instant: bool, resume: float
) -> None:
    """Merged chunks lead to the same orders at the same tokens as single chunks."""
    outcomes = []
    LoggedSession.logs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "Session", LoggedSession)
        for split in (False, True):
            if split:
                trace.spans = trace.boundary_spans = [
                    single for span in trace.spans for single in split_span(span)
                ]
            options = {"resume_seconds": resume, "instant": instant, "cost_model": ProbeCostModel()}
            outcomes.append(replay_policy(policy, trace, **options))
    merged, single = LoggedSession.logs
    assert single == merged
    assert outcomes[1] == outcomes[0]


def split_span(span: ChunkSpan) -> list[ChunkSpan]:
    starts = [span.end_positions[0] - len(span.feed_arguments[0][1]), *span.end_positions]
    return [
        ChunkSpan([feed], before) for feed, before in zip(span.feed_arguments, starts, strict=False)
    ]


@given(traces())
def test_spans_have_all_chunks_in_order(trace: ReplayTrace) -> None:
    """Merged or not, each chunk once, with the right end positions."""
    assert [feed for span in trace.spans for feed in span.feed_arguments] == trace.feed_arguments
    assert [
        feed for span in trace.boundary_spans for feed in span.feed_arguments
    ] == trace.feed_arguments
    for span in [*trace.spans, *trace.boundary_spans]:
        text, ids, at, answering, finish_reason, _ = span.merge(0, len(span.feed_arguments))
        assert text == "".join(feed[0] for feed in span.feed_arguments)
        assert len(ids) == span.end_positions[-1] - span.end_positions[0] + len(
            span.feed_arguments[0][1]
        )
        assert (at, answering, finish_reason) == span.feed_arguments[-1][2:5]
