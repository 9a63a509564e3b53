"""Markers of several tokens: a session finds them across chunks and never cuts into one."""

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
from adjourn.policies.text.markers import NO_PARTIAL_MATCH, MarkerKind, MarkerMatcher, TokenIds
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


def make_session(dialect: TokenizedDialect, policy: Policy, prompt: TokenIds = (5,)) -> Session:
    made = Session(policy, dialect, AlwaysProbe())
    made.on_prompt(prompt)
    return made


def kinds(made: Session) -> dict[str, int]:
    counted = {kind: count for kind, count in asdict(made.ledger).items() if count}
    counted.pop("prompt", None)
    return counted


def split_into_chunks(
    ids: TokenIds, sizes: list[int], inside: int, dialect: TokenizedDialect
) -> list[tuple[str, TokenIds, bool]]:
    """Text, ids and whether the answer has started, as an engine's parser sends them: it withholds
    text that may be a marker until it is certain. ``inside``: ids before the answer."""
    made, state, fed, withheld = [], NO_PARTIAL_MATCH, 0, ""
    for turn in range(len(ids)):
        size = sizes[turn % len(sizes)]
        text = ""
        for token in ids[fed : fed + size]:
            state = dialect.matcher.advance(state, token)
            complete = dialect.matcher.complete_match(state)
            withheld = "" if complete else withheld + ("w" if token in (*WORDS, HERE, IS) else "")
            if not dialect.matcher.partial_length(state):
                text, withheld = text + withheld, ""
        chunk = ids[fed : fed + size]
        fed += len(chunk)
        if chunk:
            made.append((text if fed <= inside or text else "", chunk, fed > inside))
    return made


def partial_length(dialect: TokenizedDialect, ids: TokenIds) -> int:
    """How many of the last ids may be the beginning of a marker."""
    state = NO_PARTIAL_MATCH
    for token in ids:
        state = dialect.matcher.advance(state, token)
    return dialect.matcher.partial_length(state)


TRACES = st.lists(
    st.sampled_from([(50,), (51,), (52,), (HERE,), (HERE, IS), (HERE, HERE, IS)]), max_size=8
).map(lambda parts: tuple(token for part in parts for token in part))
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(first=TRACES, second=TRACES, sizes=SIZES, tool=st.booleans())
def test_channel_markers_are_counted_under_any_chunking(
    first: TokenIds, second: TokenIds, sizes: list[int], tool: bool
) -> None:
    """The opening and the final header are markers, a header between two messages belongs to the
    trace, and a tool call to the answer."""
    end = (TOOL,) if tool else (END, START, ROLE, CHANNEL, FINAL)
    trace = (*first, *AGAIN, *second)
    made = make_session(CHANNELS, Never())
    stream = (*OPEN, *trace, *end, ANSWER, ANSWER)
    for text, ids, answering in split_into_chunks(stream, sizes, len(OPEN + trace + end), CHANNELS):
        made.feed(text, ids, 0.0, answering=answering)
    expected = {"marker": 3, "reasoning": len(trace), "answer": 3}
    if not tool:
        expected = {"marker": 8, "reasoning": len(trace), "answer": 2}
    assert kinds(made) == expected
    assert made.state is State.ANSWERING


@given(trace=TRACES, sizes=SIZES)
def test_phrase_markers_are_counted_under_any_chunking(trace: TokenIds, sizes: list[int]) -> None:
    """The beginning of a closing phrase belongs to the trace unless the phrase is completed."""
    made = make_session(PHRASES, Never())
    opening, end = (HERE, IS, THOUGHT), (HERE, IS, REPLY)
    stream = (*opening, *trace, *end, ANSWER)
    for text, ids, answering in split_into_chunks(
        stream, sizes, len(opening + trace + end), PHRASES
    ):
        made.feed(text, ids, 0.0, answering=answering)
    expected = {"marker": 6, "answer": 1} | ({"reasoning": len(trace)} if trace else {})
    assert kinds(made) == expected


@given(
    dialect=st.sampled_from([CHANNELS, PHRASES]),
    first=TRACES,
    second=TRACES,
    sizes=SIZES,
    budget=st.integers(1, 20),
    refuse=st.booleans(),
)
def test_a_stop_never_cuts_into_a_marker(
    dialect: TokenizedDialect,
    first: TokenIds,
    second: TokenIds,
    sizes: list[int],
    budget: int,
    refuse: bool,
) -> None:
    """The kept ids never end within a possible marker, and the ledger adds up, whether the cut is
    carried out or refused."""
    again = AGAIN if dialect is CHANNELS else ()
    end = (END, START, ROLE, CHANNEL, FINAL) if dialect is CHANNELS else (HERE, IS, REPLY)
    stream = (*dialect.start, *first, *again, *second, *end, ANSWER)
    inside = len(stream) - 1
    made = make_session(dialect, Budget(max=budget, grace=0))
    cut, fed = None, 0
    for text, ids, answering in split_into_chunks(stream, sizes, inside, dialect):
        fed += len(ids)
        command = made.feed(text, ids, 0.0, answering=answering)
        if isinstance(command, Cut):
            cut = command
            assert len(dialect.start) <= cut.kept <= fed
            assert not partial_length(dialect, stream[: cut.kept])
            assert made.ledger.reasoning + made.ledger.marker == cut.kept
            assert cut.closing == dialect.closing
            if refuse:
                made.on_refused("resume-failed")
    if cut is None or refuse:
        assert made.state is State.ANSWERING
        assert made.ledger.answer == 1
        assert made.ledger.marker + made.ledger.reasoning == inside
    else:
        assert made.ledger.wasted == len(stream) - cut.kept


@given(
    dialect=st.sampled_from([CHANNELS, PHRASES]),
    first=TRACES,
    second=TRACES,
    sizes=SIZES,
    finish=st.sampled_from(["end", "tool", "length", "stop"]),
    missing=st.integers(0, 12),
    policy=st.sampled_from([Never(), Budget(min=99, waits=1), Budget(max=4, grace=0)]),
    refuse=st.booleans(),
)
def test_answer_cuts_keep_the_whole_trace_and_no_part_of_a_marker(
    dialect: TokenizedDialect,
    first: TokenIds,
    second: TokenIds,
    sizes: list[int],
    finish: str,
    missing: int,
    policy: Policy,
    refuse: bool,
) -> None:
    """With separate answers and rescues: a cut keeps all of the trace that was shown and no part of
    a marker; a tool call is never generated again; a refusal loses nothing."""
    end = {"end": (END, START, ROLE, CHANNEL, FINAL), "tool": (TOOL,)}
    if dialect is PHRASES:
        end = {"end": (HERE, IS, REPLY), "tool": (TOOL, TOOL)}
    trace = (*first, *(AGAIN if dialect is CHANNELS else ()), *second)
    stream = (*dialect.start, *trace, *end.get(finish, ()))
    inside = len(stream)
    if finish in end:
        stream += (ANSWER, ANSWER)
    elif finish == "stop":
        stream, inside = (*stream, EOS), inside + 1
    else:
        stream = stream[: max(len(stream) - missing, 1)]
    made = Session(policy, dialect, AlwaysProbe(), separate_answer=True, rescue=True)
    plain = Session(Never(), dialect, AlwaysProbe())
    for each in (made, plain):
        each.on_prompt((5,))
    fed, order = 0, None
    parts = split_into_chunks(stream, sizes, inside, dialect)

    def check_cut(cut: Cut) -> None:
        ledger = made.ledger
        assert ledger.reasoning + ledger.marker + ledger.answer == cut.kept
        if made.trigger is not None and made.trigger.action == "abandoned":
            assert not partial_length(dialect, stream[: cut.kept])
            return
        # A cut at the trace's own end, even if a stop was refused before it. Kept ids may look like
        # the beginning of a marker here: the ids after them show that they are none.
        assert finish != "tool"
        released = sum(len(ids) for _, ids, _ in parts[: made.released_chunks])
        assert cut.kept == released + cut.unreleased_ids
        if cut.rescued_finish_reason == "length":
            assert cut.kept <= fed - partial_length(dialect, stream[:fed])
        elif finish == "end" and cut.kept:
            assert (ledger.reasoning, cut.closing) == (len(trace), dialect.closing)

    for number, (text, ids, answering) in enumerate(parts, 1):
        fed += len(ids)
        reason = None if number < len(parts) else "length" if finish == "length" else "stop"
        for each in (made, plain):
            new = each.feed(text, ids, 0.0, answering=answering, finish_reason=reason)
            order = new or order if each is made else order
        assert made.ledger.net == fed + made.ledger.closing
        while order is not None:
            if isinstance(order, Cut):
                check_cut(order)
            if not refuse:
                return
            order = made.on_refused("resume-failed")
            assert made.ledger.net == fed + made.ledger.closing
    assert kinds(made) == kinds(plain)
    assert (made.state, made.released_chunks) == (plain.state, plain.released_chunks)


@given(
    dialect=st.sampled_from([CHANNELS, PHRASES]),
    first=TRACES,
    second=TRACES,
    sizes=SIZES,
    resume=st.booleans(),
)
def test_an_extended_trace_gets_a_separate_answer(
    dialect: TokenizedDialect, first: TokenIds, second: TokenIds, sizes: list[int], resume: bool
) -> None:
    """A trace that is extended at its end, then cut for a separate answer, keeps the inserted text
    and all the rest; its first end is wasted."""
    end = (END, START, ROLE, CHANNEL, FINAL) if dialect is CHANNELS else (HERE, IS, REPLY)
    made = Session(
        Budget(min=999, waits=1), dialect, AlwaysProbe(), separate_answer=True, rescue=True
    )
    made.on_prompt((5,))
    reopen, fed = None, 0
    stream = (*dialect.start, *first, *end)
    for text, ids, answering in split_into_chunks((*stream, ANSWER), sizes, len(stream), dialect):
        fed += len(ids)
        reopen = made.feed(text, ids, 0.0, answering=answering) or reopen
    if not isinstance(reopen, Reopen):
        return  # the whole trace came in one chunk: there was no end to extend
    assert made.on_reopened(0.0) is None
    kept = (*stream[: reopen.kept], *reopen.inserted.ids)
    assert tuple(made.generated) == kept
    assert made.ledger.net == fed + len(reopen.inserted.ids)
    cut = None
    for text, ids, answering in split_into_chunks(
        (*second, *end, ANSWER), sizes, len(second + end), dialect
    ):
        cut = made.feed(text, ids, 0.0, answering=answering) or cut
    assert isinstance(cut, Cut)
    assert (*kept, *second) == tuple(made.generated[: cut.kept])
    assert (cut.closing, made.ledger.marker) == (dialect.closing, len(dialect.start))
    assert made.ledger.reasoning == cut.kept - len(dialect.start)
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
        assert made.ledger.marker == len(dialect.start) + len(end)


def test_a_probe_forces_the_whole_header() -> None:
    """The trial answer follows the whole header; a cut forces only the closing part of it."""
    events: list[Event] = []

    def script(event: Event) -> Any:
        events.append(event)
        return Probe() if isinstance(event, Checkpoint) else Stop("sure", event.position)

    made = make_session(CHANNELS, ScriptedPolicy(script, Needs(cues=True, probes=True)))
    for text, *ids in [("", CHANNEL), ("", ANALYSIS), ("", MESSAGE), ("a", 50), (" Wait", 51)]:
        made.feed(text, ids, 0.0)
    order = made.feed(", b", (52,), 0.0)
    assert isinstance(order, SendProbe)
    assert (order.kept, order.closing) == (4, CHANNELS.closing + CHANNELS.header)
    assert made.on_probe_result(probe_result(order.position)) == Cut(4, 1, CHANNELS.closing)


def test_a_cut_after_a_finished_message_is_before_its_end_marker() -> None:
    """If the next message has no text yet, the kept trace is not closed twice."""
    made = make_session(CHANNELS, Budget(max=5, grace=0))
    stream = [("", CHANNEL), ("", ANALYSIS), ("", MESSAGE), ("a.", 50), ("b.", 51), ("", END)]
    commands = [made.feed(text, ids, 0.0) for text, *ids in [*stream, ("", START), ("", ROLE)]]
    assert commands[:7] == [None] * 7
    assert commands[7] == Cut(5, 2, CHANNELS.closing)
    assert made.ledger.wasted == 3


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ((*OPEN, 50, END, START, ROLE), State.THINKING),  # as if a message was cut off
        ((*OPEN, 50, END, START, ROLE, CHANNEL, FINAL, MESSAGE, 9), State.OPENING),
        ((*OPEN, 50, TOOL, 9), State.OPENING),
        ((CHANNEL, ANALYSIS), State.OPENING),
        (OPEN, State.THINKING),
    ],
)
def test_the_prompts_last_complete_marker_decides_the_state(prompt: TokenIds, state: State) -> None:
    """An incomplete marker does not count, and a tool call ends a trace in the prompt too."""
    assert make_session(CHANNELS, Never(), prompt).state is state


def test_a_newline_before_the_start_marker_is_allowed() -> None:
    """GLM writes one first: it is released at once, and the trace opens after it."""
    made = Session(Never(), DIALECT, AlwaysProbe())
    made.on_prompt((5,))
    made.feed("\n", (33,), 0.0)
    assert (made.state, made.released_chunks) == (State.OPENING, 1)
    made.feed("a", (*DIALECT.start, 50), 0.0)
    assert (made.state, made.mute_reason) == (State.THINKING, None)
    assert kinds(made) == {"marker": 2, "reasoning": 1}


def test_reasoning_without_a_start_marker_mutes_the_policy() -> None:
    """Text that only begins like the start marker opens no trace."""
    made = make_session(PHRASES, Never())
    made.feed("", (HERE,), 0.0)
    made.feed("Here we", (50,), 0.0)
    assert (made.state, made.mute_reason, made.released_chunks) == (State.ANSWERING, "no-marker", 2)
    assert kinds(made) == {"answer": 2}


def test_a_start_marker_repeated_after_the_prompt_is_a_marker() -> None:
    """Some models repeat the start marker after a prompt that ends with it."""
    made = make_session(CHANNELS, Never(), (5, *OPEN))
    made.feed("a", (*OPEN, 50), 0.0)
    assert kinds(made) == {"marker": 3, "reasoning": 1}


def test_a_tool_call_in_the_first_chunk_opens_no_trace() -> None:
    """A model that calls a tool at once has no trace."""
    made = make_session(CHANNELS, Never())
    made.feed("", (TOOL,), 0.0)
    assert (made.state, kinds(made)) == (State.ANSWERING, {"answer": 1})
