"""Texts inserted into a trace, and traces that continue after them."""

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
    ("text", "inserted"),
    [("It is 7.", WAIT), ("It is 7.\n", WAIT_ON_NEWLINE), ("", WAIT_ON_NEWLINE)],
)
def test_a_trace_that_ends_too_soon_is_extended(text: str, inserted: InsertedText) -> None:
    """The end marker is replaced by a text on a line of its own."""
    session = make_session(AT_LEAST)
    feed_all(session, ("\n", 29), *([(text, 30)] if text else []))
    kept = 2 if text else 1
    assert feed_all(session, ("", END)) == [Reopen(kept, kept, kept, inserted)]
    assert (session.state, session.is_switching_stream, session.released_chunks) == (
        State.REOPENING,
        True,
        kept,
    )


def test_chunks_after_an_inserted_text_belong_to_the_trace() -> None:
    """Tokens from the model's own end on are wasted; the rest counts as one trace."""
    session = make_session(AT_LEAST)
    feed_all(session, ("So", 30), ("", END), ("7", 99))
    assert session.on_reopened(1.0) is None
    assert session.generated == [30, 22, 23]
    assert session.released_chunks == 2
    feed_all(session, (", no", 31))
    assert (session.state, session.released_chunks, session.extensions) == (State.THINKING, 3, 1)
    assert token_counts(session) == {"reasoning": 4, "wasted": 2}


def test_a_trace_ends_after_enough_extensions_or_tokens() -> None:
    """After ``waits`` extensions, or when it is long enough, the model's own end applies."""
    session = make_session(Budget(min=9, waits=1))
    feed_all(session, ("So", 30), ("", END))
    session.on_reopened(1.0)
    assert feed_all(session, ("", END)) == [None]
    assert session.state is State.ANSWERING
    long = make_session(AT_LEAST)
    assert feed_all(long, ("So", *range(30, 39)), ("", END)) == [None] * 2


def test_a_refused_extension_is_rolled_back() -> None:
    """The model's own end applies, and nothing is counted twice or lost."""
    session = make_session(AT_LEAST)
    feed_all(session, ("So", 30), ("", END))
    session.feed("", [99], 1.0, answering=True)
    session.on_refused("resume-failed")
    assert (session.state, session.released_chunks, session.mute_reason) == (
        State.ANSWERING,
        3,
        "resume-failed",
    )
    assert session.generated == [30, END]
    assert token_counts(session) == {"reasoning": 1, "marker": 1, "answer": 1}


def test_a_refused_cut_keeps_the_waste_of_an_earlier_stream() -> None:
    """After an extension, a refused cut takes back only its own waste."""
    policy = ScriptedPolicy(
        lambda e: Extend() if isinstance(e, TraceEnding) else Stop("x") if "!" in str(e) else None,
        Needs(reasoning_chunks=True, trace_endings=True),
    )
    session = make_session(policy)
    feed_all(session, ("So", 30), ("", END), ("7", 99))
    session.on_reopened(1.0)
    assert isinstance(feed_all(session, ("!", 31))[0], Cut)
    feed_all(session, ("x", 32))
    session.on_refused("resume-failed")
    assert token_counts(session) == {"reasoning": 5, "wasted": 2}


@pytest.mark.parametrize("dry_run", [{"observe_only": True}, {"hold_out": True}])
def test_a_dry_run_extends_nothing(dry_run: dict[str, bool]) -> None:
    """In observe mode and in the holdout arm the model's own end applies."""
    assert feed_all(make_session(AT_LEAST, **dry_run), ("So", 30), ("", END)) == [None] * 2


def test_an_extension_drops_an_incomplete_character() -> None:
    """An id that has no text yet is not kept."""
    session = make_session(AT_LEAST)
    feed_all(session, ("So", 30), ("", 43))
    assert feed_all(session, ("", END)) == [Reopen(1, 1, 1, WAIT)]
    session.on_reopened(1.0)
    assert token_counts(session) == {"reasoning": 3, "wasted": 2}


def test_a_new_end_bias_reopens_the_trace() -> None:
    """All decoded tokens are kept; those that come before the new stream starts are wasted."""
    session = make_session(Tilt(slope=1000, every=2))
    assert feed_all(session, ("So", 30), (" it", 31)) == [
        None,
        Reopen(2, 2, 2, InsertedText(), 3.0),
    ]
    assert feed_all(session, (" is", 32)) == [None]
    assert session.on_reopened(1.0) is None
    assert (session.generated, session.released_chunks, session.extensions) == ([30, 31], 3, 0)
    assert token_counts(session) == {"reasoning": 2, "wasted": 1}


def test_a_dry_run_has_no_end_bias() -> None:
    """In observe mode and in the holdout arm the model's logits are unchanged."""
    policy = Tilt(bias=2, slope=1000, every=1)
    assert make_session(policy).end_bias == 2
    for dry_run in ({"observe_only": True}, {"hold_out": True}):
        session = make_session(policy, **dry_run)
        assert session.end_bias == 0
        assert feed_all(session, ("So", 30), (" it", 31)) == [None] * 2


def test_the_policy_sees_inserted_texts() -> None:
    """An inserted text is a chunk like any other."""
    events: list[Event] = []

    def script(event: Event) -> Extend | None:
        events.append(event)
        return Extend() if isinstance(event, TraceEnding) else None

    session = make_session(ScriptedPolicy(script, Needs(reasoning_chunks=True, trace_endings=True)))
    feed_all(session, ("So", 30), ("", END))
    session.on_reopened(2.0)
    assert events[1:] == [TraceEnding(1, 0.0), ReasoningChunk("\nWait", (22, 23), 3, 2.0)]


def test_one_member_is_enough_to_extend() -> None:
    """In ``any_of`` and in ``all_of``."""
    for policy in (AnyOf((EAGER_DEER, AT_LEAST)), AllOf((AT_LEAST, EAGER_DEER))):
        assert feed_all(make_session(policy), ("So", 30), ("", END))[-1] == Reopen(1, 1, 1, WAIT)


def test_an_extension_during_a_probe() -> None:
    """The probe's result is counted but ignored, and the next cue is probed again."""
    session = make_session(AnyOf((EAGER_DEER, AT_LEAST)))
    order = feed_all(session, ("So ", 30), ("Wait", 31), (",", 32))[-1]
    assert isinstance(order, SendProbe)
    assert feed_all(session, ("", END)) == [Reopen(3, 3, 3, WAIT)]
    session.on_reopened(1.0)
    assert session.on_probe_result(probe_result(order.position, "7", 0.99, order.probe)) is None
    orders = [order for order in feed_all(session, (" no. ", 33), ("Hmm", 34), (",", 35)) if order]
    assert [type(order) for order in orders] == [SendProbe]


@pytest.mark.parametrize(
    ("prompt", "chunks", "kept"),
    [
        (PROMPT, [("Okay", 30)], 0),
        (PROMPT, [("\n", 29), ("Okay", 30)], 1),
        ((5,), [("", START), ("\n", 29), ("Okay", 30)], 2),
        ((5,), [("\nOkay", START, 29)], 1),
    ],
)
def test_a_stop_at_the_start_of_the_trace_inserts_its_text(
    prompt: tuple[int, ...], chunks: list, kept: int
) -> None:
    """The cut is before the first word; the inserted text is part of the trace."""
    session = make_session(NoThinking(), prompt=prompt)
    inserted = InsertedText("I have finished.", (24, 25, 26))
    opened = START in prompt
    cut = Cut(kept, kept - (not opened), CLOSING, inserted)
    assert feed_all(session, *chunks)[-1] == cut
    assert session.ledger.reasoning + session.ledger.marker == kept + 3
    session.on_refused("resume-failed")
    assert session.ledger.reasoning + session.ledger.marker == sum(len(ids) for _, *ids in chunks)
