"""Texts that are put into a trace, and traces that go on behind them."""

from __future__ import annotations

import pytest

from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.events import (
    Event,
    Extend,
    ReasoningChunk,
    Stop,
    TraceEnding,
)
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import Cut, InsertedText, Reopen, SendProbe
from adjourn.policies.session.states import State
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.no_thinking import NoThinking
from adjourn.policies.stopping.tilt import Tilt
from tests.policies.session_driver import END
from tests.policies.session_helpers import (
    CLOSING,
    EAGER_DEER,
    PROMPT,
    START,
    ScriptedPolicy,
    feed_all,
    make_session,
    probe_result,
    token_counts,
)

AT_LEAST = Budget(min=9)
WAIT, WAIT_ON_NEWLINE = InsertedText("\nWait", (22, 23)), InsertedText("Wait", (23,))


@pytest.mark.parametrize(
    ("text", "said"), [("It is 7.", WAIT), ("It is 7.\n", WAIT_ON_NEWLINE), ("", WAIT_ON_NEWLINE)]
)
def test_a_trace_that_ends_too_soon_goes_on(text: str, said: InsertedText) -> None:
    """In place of the end marker a text is put, on a line of its own."""
    made = make_session(AT_LEAST)
    feed_all(made, ("\n", 29), *([(text, 30)] if text else []))
    kept = 2 if text else 1
    assert feed_all(made, ("", END)) == [Reopen(kept, kept, kept, said)]
    assert (made.state, made.is_switching_stream, made.released_chunks) == (
        State.REOPENING,
        True,
        kept,
    )


def test_what_comes_behind_it_is_the_trace() -> None:
    """What the model said behind its own end is wasted; the rest counts as one trace."""
    made = make_session(AT_LEAST)
    feed_all(made, ("So", 30), ("", END), ("7", 99))
    assert made.on_reopened(1.0) is None
    assert made.generated == [30, 22, 23]
    assert made.released_chunks == 2
    feed_all(made, (", no", 31))
    assert (made.state, made.released_chunks, made.extensions) == (State.THINKING, 3, 1)
    assert token_counts(made) == {"reasoning": 4, "wasted": 2}


def test_it_may_end_for_good() -> None:
    """After ``waits`` times, or when it is long enough, the model's own end stands."""
    made = make_session(Budget(min=9, waits=1))
    feed_all(made, ("So", 30), ("", END))
    made.on_reopened(1.0)
    assert feed_all(made, ("", END)) == [None]
    assert made.state is State.ANSWERING
    long = make_session(AT_LEAST)
    assert feed_all(long, ("So", *range(30, 39)), ("", END)) == [None] * 2


def test_a_refused_extension_is_undone() -> None:
    """The model's own end comes after all, and nothing is counted twice or lost."""
    made = make_session(AT_LEAST)
    feed_all(made, ("So", 30), ("", END))
    made.feed("", [99], 1.0, answering=True)
    made.on_refused("resume-failed")
    assert (made.state, made.released_chunks, made.mute_reason) == (
        State.ANSWERING,
        3,
        "resume-failed",
    )
    assert made.generated == [30, END]
    assert token_counts(made) == {"reasoning": 1, "marker": 1, "answer": 1}


def test_waste_of_an_earlier_stream_stays() -> None:
    """A cut that is refused after an extension gives back its own waste alone."""
    policy = ScriptedPolicy(
        lambda e: Extend() if isinstance(e, TraceEnding) else Stop("x") if "!" in str(e) else None,
        Needs(reasoning_chunks=True, trace_endings=True),
    )
    made = make_session(policy)
    feed_all(made, ("So", 30), ("", END), ("7", 99))
    made.on_reopened(1.0)
    assert isinstance(feed_all(made, ("!", 31))[0], Cut)
    feed_all(made, ("x", 32))
    made.on_refused("resume-failed")
    assert token_counts(made) == {"reasoning": 5, "wasted": 2}


@pytest.mark.parametrize("spare", [{"observe_only": True}, {"hold_out": True}])
def test_nothing_is_extended_that_is_only_watched(spare: dict[str, bool]) -> None:
    """In observe mode and in the held-out arm the model's own end stands."""
    assert feed_all(make_session(AT_LEAST, **spare), ("So", 30), ("", END)) == [None] * 2


def test_an_extension_in_the_middle_of_a_character() -> None:
    """What brought no text yet is not kept."""
    made = make_session(AT_LEAST)
    feed_all(made, ("So", 30), ("", 43))
    assert feed_all(made, ("", END)) == [Reopen(1, 1, 1, WAIT)]
    made.on_reopened(1.0)
    assert token_counts(made) == {"reasoning": 3, "wasted": 2}


def test_a_stream_with_another_bias() -> None:
    """All that was decoded stays, and what comes behind it until the new stream runs is wasted."""
    made = make_session(Tilt(slope=1000, every=2))
    assert feed_all(made, ("So", 30), (" it", 31)) == [None, Reopen(2, 2, 2, InsertedText(), 3.0)]
    assert feed_all(made, (" is", 32)) == [None]
    assert made.on_reopened(1.0) is None
    assert (made.generated, made.released_chunks, made.extensions) == ([30, 31], 3, 0)
    assert token_counts(made) == {"reasoning": 2, "wasted": 1}


def test_no_bias_where_one_only_watches() -> None:
    """In observe mode and in the held-out arm the model is left as it is."""
    policy = Tilt(bias=2, slope=1000, every=1)
    assert make_session(policy).end_bias == 2
    for spare in ({"observe_only": True}, {"hold_out": True}):
        watched = make_session(policy, **spare)
        assert watched.end_bias == 0
        assert feed_all(watched, ("So", 30), (" it", 31)) == [None] * 2


def test_the_policy_sees_what_was_put_in() -> None:
    """It is a piece like any other: counted, and looked at."""
    seen: list[Event] = []

    def look(event: Event) -> Extend | None:
        seen.append(event)
        return Extend() if isinstance(event, TraceEnding) else None

    made = make_session(ScriptedPolicy(look, Needs(reasoning_chunks=True, trace_endings=True)))
    feed_all(made, ("So", 30), ("", END))
    made.on_reopened(2.0)
    assert seen[1:] == [TraceEnding(1, 0.0), ReasoningChunk("\nWait", (22, 23), 3, 2.0)]


def test_an_end_in_a_composition() -> None:
    """One member that wants it to go on is enough."""
    for policy in (AnyOf((EAGER_DEER, AT_LEAST)), AllOf((AT_LEAST, EAGER_DEER))):
        assert feed_all(make_session(policy), ("So", 30), ("", END))[-1] == Reopen(1, 1, 1, WAIT)


def test_a_probe_that_an_extension_outran() -> None:
    """Its result is counted and not judged, and the next cue is probed again."""
    made = make_session(AnyOf((EAGER_DEER, AT_LEAST)))
    ask = feed_all(made, ("So ", 30), ("Wait", 31), (",", 32))[-1]
    assert isinstance(ask, SendProbe)
    assert feed_all(made, ("", END)) == [Reopen(3, 3, 3, WAIT)]
    made.on_reopened(1.0)
    assert made.on_probe_result(probe_result(ask.position, "7", 0.99, ask.probe)) is None
    asks = [order for order in feed_all(made, (" no. ", 33), ("Hmm", 34), (",", 35)) if order]
    assert [type(order) for order in asks] == [SendProbe]


@pytest.mark.parametrize(
    ("prompt", "pieces", "kept"),
    [
        (PROMPT, [("Okay", 30)], 0),
        (PROMPT, [("\n", 29), ("Okay", 30)], 1),
        ((5,), [("", START), ("\n", 29), ("Okay", 30)], 2),
        ((5,), [("\nOkay", START, 29)], 1),
    ],
)
def test_a_trace_that_does_not_begin(prompt: tuple[int, ...], pieces: list, kept: int) -> None:
    """The cut is before the first word; what is said in its place is part of the trace."""
    made = make_session(NoThinking(), prompt=prompt)
    said = InsertedText("I have finished.", (24, 25, 26))
    opened = START in prompt
    cut = Cut(kept, kept - (not opened), CLOSING, said)
    assert feed_all(made, *pieces)[-1] == cut
    assert made.ledger.reasoning + made.ledger.marker == kept + 3
    made.on_refused("resume-failed")
    assert made.ledger.reasoning + made.ledger.marker == sum(len(ids) for _, *ids in pieces)
