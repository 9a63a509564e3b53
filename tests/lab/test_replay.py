"""Playing: what is due when, what it costs, and that leaps change nothing."""

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

FIVE = [" a", " b", " c", " Wait", ",", " d", " e", " f", " g", " h", " i"]


def played(policy: str, on: ReplayTrace, **options: Any) -> Outcome:
    return replay_trace(
        parse(policy), on, DIALECT, options.pop("appraiser", AlwaysProbe()), **options
    )


def test_an_instant_probe_wastes_what_shows_the_cue() -> None:
    """The cue is certain with the token behind it; both are behind the cut."""
    outcome = played("deer(gate=0)", make_replay_trace(FIVE, [probe_completed(3)]), instant=True)
    assert (outcome.stopped, outcome.kept_tokens, outcome.wasted_tokens) == (True, 3, 2)
    assert (outcome.answer, outcome.correct, outcome.reason) == ("7", True, "confident")
    assert outcome.net_tokens == 3 + len(CLOSING) + 2 + 2 + outcome.probe_tokens


@pytest.mark.parametrize(("late", "more"), [(0.5, 0), (1.5, 1), (3.5, 3)])
def test_a_late_probe_wastes_what_came_meanwhile(late: float, more: int) -> None:
    """As many tokens as the stream brought until the result, and until the answer began."""
    on = make_replay_trace(FIVE, [probe_completed(3, delay_seconds=late * SECONDS_PER_TOKEN)])
    assert played("deer(gate=0)", on).wasted_tokens == 2 + more
    assert (
        played("deer(gate=0)", on, resume_seconds=2 * SECONDS_PER_TOKEN).wasted_tokens
        == 2 + more + 2
    )


def test_a_probe_later_than_the_end_stops_nothing() -> None:
    """The model was faster; the probe's tokens were not there to count."""
    outcome = played(
        "deer(gate=0)", make_replay_trace(FIVE, [probe_completed(3, delay_seconds=99.0)])
    )
    assert not outcome.stopped
    assert (outcome.kept_tokens, outcome.answer) == (len(FIVE), "7")


def test_a_gate_is_the_beginning_of_what_was_drawn() -> None:
    """deer's one-token question is answered from the longer probe, in a share of its time."""
    on = make_replay_trace(FIVE, [probe_completed(3)])
    outcome = played("deer", on, instant=True)
    assert (outcome.stopped, outcome.probe_count, outcome.probe_tokens) == (True, 2, 1 + 2)
    gate = on.results.find_probe(Probe(max_tokens=1), 3, 3)
    assert gate is not None
    assert isinstance(gate.result, ProbeResult)
    assert (gate.result.tokens, gate.result.text, gate.result.finished) == (("7",), "7", False)
    assert gate.delay_seconds == pytest.approx(SECONDS_PER_TOKEN / 4)


@given(st.integers(1, 30), st.text("0123456789", min_size=1, max_size=12), st.integers(1, 14))
def test_a_shorter_probe_is_a_beginning(asked: int, answer: str, recorded: int) -> None:
    """Never more tokens than asked for, always a beginning, and none where more would have been
    drawn than was."""
    full = (*answer, "}")
    cut = full[:recorded]
    result = ProbeResult(
        Probe(max_tokens=recorded), 3, "".join(cut), cut, (-0.1,) * len(cut),
        len(full) <= recorded, 0.1, 0.1,
    )  # fmt: skip
    event = replace_result(probe_completed(3), result)
    found = make_replay_trace(FIVE, [event]).results.find_probe(Probe(max_tokens=asked), 3, 3)
    if asked > recorded and len(full) > recorded:
        assert found is None
        return
    assert found is not None
    assert isinstance(found.result, ProbeResult)
    assert found.result.tokens == full[:asked]
    assert found.result.finished == (len(full) <= asked)
    assert len(found.result.logprobs) == len(found.result.tokens)


def replace_result(event: ProbeCompleted, result: ProbeResult | ProbeFailed) -> ProbeCompleted:
    from adjourn.lab import serialization

    return ProbeCompleted(
        event.at, event.sent_at, event.kept, event.position, serialization.to_json_value(result)
    )


@pytest.mark.parametrize(("kept", "near"), [(3, True), (3 + MAX_PROBE_OFFSET, False), (2, None)])
def test_what_was_drawn_a_little_before_stands_in(kept: int, near: bool | None) -> None:
    """Never what was drawn behind the place, and told from what was drawn at it."""
    found = make_replay_trace(FIVE, [probe_completed(3)]).results.find_probe(Probe(), kept, kept)
    assert (None if found is None else found.is_exact) == near
    assert found is None or found.result.position == kept
    assert (
        make_replay_trace(FIVE, [probe_completed(3)]).results.find_probe(
            Probe(), 4 + MAX_PROBE_OFFSET, 4 + MAX_PROBE_OFFSET
        )
        is None
    )
    assert (
        make_replay_trace(FIVE, [probe_completed(3)]).results.find_probe(Probe("other"), 3, 3)
        is None
    )


def test_a_probe_that_failed_when_recorded_fails() -> None:
    """The policy is told, and goes on."""
    failed = replace_result(probe_completed(3), ProbeFailed(Probe(), 3, "timeout", 0.1))
    outcome = played("deer(gate=0)", make_replay_trace(FIVE, [failed]))
    assert (outcome.stopped, outcome.probe_count, outcome.missing_probes) == (False, 1, 0)


def test_what_was_not_recorded_is_counted() -> None:
    """A policy that asks for it gets nothing, and its report says so."""
    outcome = played("deer(gate=0)", make_replay_trace(FIVE, []))
    assert (outcome.stopped, outcome.probe_count, outcome.missing_probes) == (False, 1, 1)


def test_the_answer_at_a_cut_is_the_last_one_drawn() -> None:
    """A budget stops where nobody asked; what was drawn before it is the best that is known."""
    on = make_replay_trace([*FIVE, *FIVE], [probe_completed(3, "6"), probe_completed(14, "7")])
    outcome = played("budget(max=8, grace=0)", on)
    assert (outcome.kept_tokens, outcome.answer, outcome.correct) == (8, "6", False)
    assert on.settled_position() == 14


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        (" B\n", "B"),
    ],
)
def test_an_answer_is_its_last_box(text: str, answer: str) -> None:
    """Else all that was said."""
    assert extract_final_answer(text) == answer


def test_a_truncated_trace_is_not_whole() -> None:
    """A token limit tells nothing of the trace; nor does a stream that broke."""
    whole = stream_events(FIVE)
    assert ReplayTrace(Trace("p", 0, [], None, whole), DIALECT).is_complete
    limited = [*whole[:-1], StreamedChunk(1.0, "", (99,), finish_reason="length")]
    assert not ReplayTrace(Trace("p", 0, [], None, limited), DIALECT).is_complete
    assert not ReplayTrace(Trace("p", 0, [], None, whole[:5]), DIALECT).is_complete


# -- leaps -----------------------------------------------------------------------------------

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
def tapes(draw: st.DrawFn) -> ReplayTrace:
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


class Logged(Session):
    """Keeps what it asked and where it was cut."""

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
    tapes(),
    st.sampled_from(POLICIES),
    st.booleans(),
    st.sampled_from([0.0, 2.5 * SECONDS_PER_TOKEN]),
)
def test_leaps_change_nothing(on: ReplayTrace, policy: str, instant: bool, resume: float) -> None:
    """Pieces put together lead to the same probes and cuts at the same tokens as one by one."""
    outcomes = []
    Logged.logs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "Session", Logged)
        for alone in (False, True):
            if alone:
                on.spans = on.boundary_spans = [run for whole in on.spans for run in apart(whole)]
            options = {"resume_seconds": resume, "instant": instant, "appraiser": ProbeCostModel()}
            outcomes.append(played(policy, on, **options))
    leapt, walked = Logged.logs
    assert walked == leapt
    assert outcomes[1] == outcomes[0]


def apart(run: ChunkSpan) -> list[ChunkSpan]:
    begins = [run.end_positions[0] - len(run.feed_arguments[0][1]), *run.end_positions]
    return [
        ChunkSpan([feed], before) for feed, before in zip(run.feed_arguments, begins, strict=False)
    ]


@given(tapes())
def test_runs_are_the_pieces(on: ReplayTrace) -> None:
    """Put together or not, every piece is there once, in order, and ends where it is said to."""
    assert [feed for run in on.spans for feed in run.feed_arguments] == on.feed_arguments
    assert [feed for run in on.boundary_spans for feed in run.feed_arguments] == on.feed_arguments
    for run in [*on.spans, *on.boundary_spans]:
        text, ids, at, answering, ending, _ = run.merge(0, len(run.feed_arguments))
        assert text == "".join(feed[0] for feed in run.feed_arguments)
        assert len(ids) == run.end_positions[-1] - run.end_positions[0] + len(
            run.feed_arguments[0][1]
        )
        assert (at, answering, ending) == run.feed_arguments[-1][2:5]
