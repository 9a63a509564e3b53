"""A session finds markers of several tokens, wherever the chunks end, and never cuts into one."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import Checkpoint, Event, Probe, Stop
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs, Policy
from adjourn.policies.session.orders import Cut, Reopen, SendProbe
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.policies.text.markers import MarkerKind, MarkerMatcher, TokenIds
from tests.policies.session_helpers import DIALECT, AlwaysProbe, ScriptedPolicy, probe_result

CHANNEL, ANALYSIS, MESSAGE, END, START, ROLE, FINAL, TOOL = range(1, 9)
HERE, IS, THOUGHT, REPLY = range(11, 15)
WORDS, ANSWER, EOS = (50, 51, 52), 99, 98
OPEN, AGAIN = (CHANNEL, ANALYSIS, MESSAGE), (END, START, ROLE, CHANNEL, ANALYSIS, MESSAGE)

CHANNELS = replace(
    DIALECT,
    matcher=MarkerMatcher(
        {
            OPEN: MarkerKind.START,
            AGAIN: MarkerKind.START,
            (CHANNEL, FINAL): MarkerKind.END,
            (END, START, ROLE, CHANNEL, FINAL): MarkerKind.END,
            (TOOL,): MarkerKind.BREAK,
        }
    ),
    start=OPEN,
    closing=(END, START, ROLE),
    closing_on_newline=(END, START, ROLE),
    header=(CHANNEL, FINAL, MESSAGE),
)
PHRASES = replace(
    DIALECT,
    matcher=MarkerMatcher(
        {
            (HERE, IS, THOUGHT): MarkerKind.START,
            (HERE, IS, REPLY): MarkerKind.END,
            (TOOL, TOOL): MarkerKind.BREAK,
        }
    ),
    start=(HERE, IS, THOUGHT),
    closing=(HERE, IS, REPLY),
    closing_on_newline=(HERE, IS, REPLY),
)


def session(marks: TokenizedDialect, policy: Policy, prompt: TokenIds = (5,)) -> Session:
    made = Session(policy, marks, AlwaysProbe())
    made.on_prompt(prompt)
    return made


def kinds(made: Session) -> dict[str, int]:
    counted = {kind: count for kind, count in asdict(made.ledger).items() if count}
    counted.pop("prompt", None)
    return counted


def pieces(
    ids: TokenIds, sizes: list[int], inside: int, marks: TokenizedDialect
) -> list[tuple[str, TokenIds, bool]]:
    """Text, ids and whether the answer has begun, as a parser sends them: what may be a marker
    waits until it is known to be none. ``inside``: ids before the answer."""
    made, at, fed, waiting = [], 0, 0, ""
    for turn in range(len(ids)):
        size = sizes[turn % len(sizes)]
        text = ""
        for token in ids[fed : fed + size]:
            at = marks.matcher.advance(at, token)
            whole = marks.matcher.complete_match(at)
            waiting = "" if whole else waiting + ("w" if token in (*WORDS, HERE, IS) else "")
            if not marks.matcher.partial_length(at):
                text, waiting = text + waiting, ""
        chunk = ids[fed : fed + size]
        fed += len(chunk)
        if chunk:
            made.append((text if fed <= inside or text else "", chunk, fed > inside))
    return made


TRACES = st.lists(
    st.sampled_from([(50,), (51,), (52,), (HERE,), (HERE, IS), (HERE, HERE, IS)]), max_size=8
).map(lambda parts: tuple(token for part in parts for token in part))
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(first=TRACES, second=TRACES, sizes=SIZES, tool=st.booleans())
def test_channels_are_counted_whatever_the_chunking(
    first: TokenIds, second: TokenIds, sizes: list[int], tool: bool
) -> None:
    """Trap 2: the opening and the final header are markers, a header between two messages is the
    trace's, and a tool call belongs to the answer."""
    end = (TOOL,) if tool else (END, START, ROLE, CHANNEL, FINAL)
    trace = (*first, *AGAIN, *second)
    made = session(CHANNELS, Never())
    stream = (*OPEN, *trace, *end, ANSWER, ANSWER)
    for text, ids, answering in pieces(stream, sizes, len(OPEN + trace + end), CHANNELS):
        made.feed(text, ids, 0.0, answering=answering)
    expected = {"marker": 3, "reasoning": len(trace), "answer": 3}
    if not tool:
        expected = {"marker": 8, "reasoning": len(trace), "answer": 2}
    assert kinds(made) == expected
    assert made.state is State.ANSWERING


@given(trace=TRACES, sizes=SIZES)
def test_phrases_are_counted_whatever_the_chunking(trace: TokenIds, sizes: list[int]) -> None:
    """What only looked like the closing phrase is the trace's, what was it is a marker."""
    made = session(PHRASES, Never())
    opening, end = (HERE, IS, THOUGHT), (HERE, IS, REPLY)
    stream = (*opening, *trace, *end, ANSWER)
    for text, ids, answering in pieces(stream, sizes, len(opening + trace + end), PHRASES):
        made.feed(text, ids, 0.0, answering=answering)
    expected = {"marker": 6, "answer": 1} | ({"reasoning": len(trace)} if trace else {})
    assert kinds(made) == expected


@given(
    marks=st.sampled_from([CHANNELS, PHRASES]),
    first=TRACES,
    second=TRACES,
    sizes=SIZES,
    budget=st.integers(1, 20),
    refuse=st.booleans(),
)
def test_no_cut_parts_a_marker(
    marks: TokenizedDialect,
    first: TokenIds,
    second: TokenIds,
    sizes: list[int],
    budget: int,
    refuse: bool,
) -> None:
    """Trap 8: what is kept never ends within what may be a marker, and the ledger adds up, be the
    cut carried out or refused."""
    again = AGAIN if marks is CHANNELS else ()
    end = (END, START, ROLE, CHANNEL, FINAL) if marks is CHANNELS else (HERE, IS, REPLY)
    stream = (*marks.start, *first, *again, *second, *end, ANSWER)
    inside = len(stream) - 1
    made = session(marks, Budget(max=budget, grace=0))
    cut, fed = None, 0
    for text, ids, answering in pieces(stream, sizes, inside, marks):
        fed += len(ids)
        command = made.feed(text, ids, 0.0, answering=answering)
        if isinstance(command, Cut):
            cut = command
            assert len(marks.start) <= cut.kept <= fed
            place = 0
            for token in stream[: cut.kept]:
                place = marks.matcher.advance(place, token)
            assert not marks.matcher.partial_length(place)
            assert made.ledger.reasoning + made.ledger.marker == cut.kept
            assert cut.closing == marks.closing
            if refuse:
                made.on_refused("resume-failed")
    if cut is None or refuse:
        assert made.state is State.ANSWERING
        assert made.ledger.answer == 1
        assert made.ledger.marker + made.ledger.reasoning == inside
    else:
        assert made.ledger.wasted == len(stream) - cut.kept


@given(
    marks=st.sampled_from([CHANNELS, PHRASES]),
    first=TRACES,
    second=TRACES,
    sizes=SIZES,
    finish=st.sampled_from(["end", "tool", "length", "stop"]),
    lost=st.integers(0, 12),
    policy=st.sampled_from([Never(), Budget(min=99, waits=1), Budget(max=4, grace=0)]),
    refuse=st.booleans(),
)
def test_answers_that_are_drawn(
    marks: TokenizedDialect,
    first: TokenIds,
    second: TokenIds,
    sizes: list[int],
    finish: str,
    lost: int,
    policy: Policy,
    refuse: bool,
) -> None:
    """Apart, or where the response would end in its trace: what is kept is all of the trace that
    was shown and no part of a marker; a tool call is never drawn anew; a refusal loses nothing."""
    end = {"end": (END, START, ROLE, CHANNEL, FINAL), "tool": (TOOL,)}
    if marks is PHRASES:
        end = {"end": (HERE, IS, REPLY), "tool": (TOOL, TOOL)}
    trace = (*first, *(AGAIN if marks is CHANNELS else ()), *second)
    stream = (*marks.start, *trace, *end.get(finish, ()))
    inside = len(stream)
    if finish in end:
        stream += (ANSWER, ANSWER)
    elif finish == "stop":
        stream, inside = (*stream, EOS), inside + 1
    else:
        stream = stream[: max(len(stream) - lost, 1)]
    made, alone = (
        Session(each, marks, AlwaysProbe(), separate_answer=True, rescue=True)
        for each in (policy, Never())
    )
    alone._separate_answer = alone._rescue = False
    for each in (made, alone):
        each.on_prompt((5,))
    fed, order = 0, None
    parts = pieces(stream, sizes, inside, marks)
    for number, (text, ids, answering) in enumerate(parts, 1):
        fed += len(ids)
        ending = None if number < len(parts) else "length" if finish == "length" else "stop"
        for each in (made, alone):
            got = each.feed(text, ids, 0.0, answering=answering, finish_reason=ending)
            order = got or order if each is made else order
        if isinstance(got := order, Cut):
            assert made.trigger is not None or finish != "tool"
            assert made.ledger.reasoning + made.ledger.marker + made.ledger.answer == got.kept
            place = 0
            for token in stream[: got.kept]:
                place = marks.matcher.advance(place, token)
            if made.trigger is None:
                released = sum(len(ids) for _, ids, _ in parts[: made.released_chunks])
                assert got.kept == released + got.unreleased_ids
            # After a refused trigger, this cut is the one at the trace's own end.
            triggered = made.trigger is not None and made.trigger.action != "refused"
            if got.rescued_finish_reason == "length" or triggered:
                assert not marks.matcher.partial_length(place)
            elif finish == "end" and got.kept:
                assert (made.ledger.reasoning, got.closing) == (len(trace), marks.closing)
        assert made.ledger.net == fed + made.ledger.closing
        while refuse and order is not None:
            order = made.on_refused("resume-failed")
        if order is not None:
            break
    if order is None:
        assert kinds(made) == kinds(alone)
        assert (made.state, made.released_chunks) == (alone.state, alone.released_chunks)


@given(
    marks=st.sampled_from([CHANNELS, PHRASES]),
    first=TRACES,
    second=TRACES,
    sizes=SIZES,
    resume=st.booleans(),
)
def test_a_trace_that_went_on_is_drawn_apart(
    marks: TokenizedDialect, first: TokenIds, second: TokenIds, sizes: list[int], resume: bool
) -> None:
    """Extended where it would have ended, then answered by a call of its own: what was put in is
    kept with all the rest, and the first end is wasted."""
    end = (END, START, ROLE, CHANNEL, FINAL) if marks is CHANNELS else (HERE, IS, REPLY)
    made = Session(
        Budget(min=999, waits=1), marks, AlwaysProbe(), separate_answer=True, rescue=True
    )
    made.on_prompt((5,))
    reopen, fed = None, 0
    whole = (*marks.start, *first, *end)
    for text, ids, answering in pieces((*whole, ANSWER), sizes, len(whole), marks):
        fed += len(ids)
        reopen = made.feed(text, ids, 0.0, answering=answering) or reopen
    if not isinstance(reopen, Reopen):
        return  # the trace came whole in one piece: nothing was seen of it yet
    assert made.on_reopened(0.0) is None
    kept = (*whole[: reopen.kept], *reopen.inserted.ids)
    assert tuple(made.generated) == kept
    assert made.ledger.net == fed + len(reopen.inserted.ids)
    cut = None
    for text, ids, answering in pieces((*second, *end, ANSWER), sizes, len(second + end), marks):
        cut = made.feed(text, ids, 0.0, answering=answering) or cut
    assert isinstance(cut, Cut)
    assert (*kept, *second) == tuple(made.generated[: cut.kept])
    assert (cut.closing, made.ledger.marker) == (marks.closing, len(marks.start))
    assert made.ledger.reasoning == cut.kept - len(marks.start)
    if resume:
        made.on_resumed()
        assert (made.state, made.stopped, made.rescued_finish_reason) == (
            State.ANSWERING,
            False,
            None,
        )
    else:
        made.on_refused("resume-failed")
        assert (made.state, made.ledger.answer) == (State.ANSWERING, 1)
        assert made.ledger.marker == len(marks.start) + len(end)


def test_a_probe_forces_the_header() -> None:
    """The trial answer stands behind the whole header, of which a cut forces but the beginning."""
    asked: list[Event] = []

    def script(event: Event) -> Any:
        asked.append(event)
        return Probe() if isinstance(event, Checkpoint) else Stop("sure", event.position)

    made = session(CHANNELS, ScriptedPolicy(script, Needs(cues=True, probes=True)))
    for text, *ids in [("", CHANNEL), ("", ANALYSIS), ("", MESSAGE), ("a", 50), (" Wait", 51)]:
        made.feed(text, ids, 0.0)
    ask = made.feed(", b", (52,), 0.0)
    assert isinstance(ask, SendProbe)
    assert (ask.kept, ask.closing) == (4, CHANNELS.closing + CHANNELS.header)
    assert made.on_probe_result(probe_result(ask.position)) == Cut(4, 1, CHANNELS.closing)


def test_a_cut_behind_a_finished_message_is_before_its_end() -> None:
    """Where the next message has no text yet, what is kept is not closed twice."""
    made = session(CHANNELS, Budget(max=5, grace=0))
    stream = [("", CHANNEL), ("", ANALYSIS), ("", MESSAGE), ("a.", 50), ("b.", 51), ("", END)]
    commands = [made.feed(text, ids, 0.0) for text, *ids in [*stream, ("", START), ("", ROLE)]]
    assert commands[:7] == [None] * 7
    assert commands[7] == Cut(5, 2, CHANNELS.closing)
    assert made.ledger.wasted == 3


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ((*OPEN, 50, END, START, ROLE), State.THINKING),  # as where a message was cut off
        ((*OPEN, 50, END, START, ROLE, CHANNEL, FINAL, MESSAGE, 9), State.OPENING),
        ((*OPEN, 50, TOOL, 9), State.OPENING),
        ((CHANNEL, ANALYSIS), State.OPENING),
        (OPEN, State.THINKING),
    ],
)
def test_the_prompts_last_whole_marker_tells(prompt: TokenIds, state: State) -> None:
    """A beginning is no marker, and a tool call ends a trace in the prompt too."""
    assert session(CHANNELS, Never(), prompt).state is state


def test_a_newline_before_the_marker_decides_nothing() -> None:
    """GLM writes one first: it is shown as it came, and the trace opens behind it."""
    made = Session(Never(), DIALECT, AlwaysProbe())
    made.on_prompt((5,))
    made.feed("\n", (33,), 0.0)
    assert (made.state, made.released_chunks) == (State.OPENING, 1)
    made.feed("a", (*DIALECT.start, 50), 0.0)
    assert (made.state, made.mute_reason) == (State.THINKING, None)
    assert kinds(made) == {"marker": 2, "reasoning": 1}


def test_reasoning_before_any_marker_is_not_judged() -> None:
    """A beginning that turns out to be none was no trace of this dialect."""
    made = session(PHRASES, Never())
    made.feed("", (HERE,), 0.0)
    made.feed("Here we", (50,), 0.0)
    assert (made.state, made.mute_reason, made.released_chunks) == (State.ANSWERING, "no-marker", 2)
    assert kinds(made) == {"answer": 2}


def test_a_marker_written_twice_is_one_opening() -> None:
    """Some models write the marker once more behind a prompt that ends with it."""
    made = session(CHANNELS, Never(), (5, *OPEN))
    made.feed("a", (*OPEN, 50), 0.0)
    assert kinds(made) == {"marker": 3, "reasoning": 1}


def test_a_break_in_the_first_piece_is_no_trace() -> None:
    """A model that calls a tool at once has not thought."""
    made = session(CHANNELS, Never())
    made.feed("", (TOOL,), 0.0)
    assert (made.state, kinds(made)) == (State.ANSWERING, {"answer": 1})
