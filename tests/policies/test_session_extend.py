"""Texts that are put into a trace, and traces that go on behind them."""

from __future__ import annotations

import pytest

from policies.budget import Budget
from policies.compose import AllOf, AnyOf
from policies.events import (
    Closing,
    Event,
    Extend,
    Stop,
    Thought,
)
from policies.no_thinking import NoThinking
from policies.orders import Ask, Cut, Reopen, Said
from policies.policy import Needs
from policies.states import State
from policies.tilt import Tilt
from tests.policies.driver import END
from tests.policies.lab import (
    CLOSING,
    EAGER,
    PROMPT,
    START,
    Scripted,
    fed,
    kinds,
    result,
    session,
)

AT_LEAST = Budget(min=9)
WAIT, WAIT_ON_NEWLINE = Said("\nWait", (22, 23)), Said("Wait", (23,))


@pytest.mark.parametrize(
    ("text", "said"), [("It is 7.", WAIT), ("It is 7.\n", WAIT_ON_NEWLINE), ("", WAIT_ON_NEWLINE)]
)
def test_a_trace_that_ends_too_soon_goes_on(text: str, said: Said) -> None:
    """In place of the end marker a text is put, on a line of its own."""
    made = session(AT_LEAST)
    fed(made, ("\n", 29), *([(text, 30)] if text else []))
    kept = 2 if text else 1
    assert fed(made, ("", END)) == [Reopen(kept, kept, kept, said)]
    assert (made.state, made.waiting, made.released) == (State.REOPENING, True, kept)


def test_what_comes_behind_it_is_the_trace() -> None:
    """What the model said behind its own end is wasted; the rest counts as one trace."""
    made = session(AT_LEAST)
    fed(made, ("So", 30), ("", END), ("7", 99))
    assert made.reopened(1.0) is None
    assert made.generated == [30, 22, 23]
    assert made.released == 2
    fed(made, (", no", 31))
    assert (made.state, made.released, made.extended) == (State.THINKING, 3, 1)
    assert kinds(made) == {"reasoning": 4, "wasted": 2}


def test_it_may_end_for_good() -> None:
    """After ``waits`` times, or when it is long enough, the model's own end stands."""
    made = session(Budget(min=9, waits=1))
    fed(made, ("So", 30), ("", END))
    made.reopened(1.0)
    assert fed(made, ("", END)) == [None]
    assert made.state is State.ANSWERING
    long = session(AT_LEAST)
    assert fed(long, ("So", *range(30, 39)), ("", END)) == [None] * 2


def test_a_refused_extension_is_undone() -> None:
    """The model's own end comes after all, and nothing is counted twice or lost."""
    made = session(AT_LEAST)
    fed(made, ("So", 30), ("", END))
    made.feed("", [99], 1.0, answering=True)
    made.refused("resume-failed")
    assert (made.state, made.released, made.muted) == (State.ANSWERING, 3, "resume-failed")
    assert made.generated == [30, END]
    assert kinds(made) == {"reasoning": 1, "marker": 1, "answer": 1}


def test_waste_of_an_earlier_stream_stays() -> None:
    """A cut that is refused after an extension gives back its own waste alone."""
    policy = Scripted(
        lambda e: Extend() if isinstance(e, Closing) else Stop("x") if "!" in str(e) else None,
        Needs(thoughts=True, extends=True),
    )
    made = session(policy)
    fed(made, ("So", 30), ("", END), ("7", 99))
    made.reopened(1.0)
    assert isinstance(fed(made, ("!", 31))[0], Cut)
    fed(made, ("x", 32))
    made.refused("resume-failed")
    assert kinds(made) == {"reasoning": 5, "wasted": 2}


@pytest.mark.parametrize("spare", [{"observe": True}, {"hold_out": True}])
def test_nothing_is_extended_that_is_only_watched(spare: dict[str, bool]) -> None:
    """In observe mode and in the held-out arm the model's own end stands."""
    assert fed(session(AT_LEAST, **spare), ("So", 30), ("", END)) == [None] * 2


def test_an_extension_in_the_middle_of_a_character() -> None:
    """What brought no text yet is not kept."""
    made = session(AT_LEAST)
    fed(made, ("So", 30), ("", 43))
    assert fed(made, ("", END)) == [Reopen(1, 1, 1, WAIT)]
    made.reopened(1.0)
    assert kinds(made) == {"reasoning": 3, "wasted": 2}


def test_a_stream_with_another_bias() -> None:
    """All that was decoded stays, and what comes behind it until the new stream runs is wasted."""
    made = session(Tilt(slope=1000, every=2))
    assert fed(made, ("So", 30), (" it", 31)) == [None, Reopen(2, 2, 2, Said(), 3.0)]
    assert fed(made, (" is", 32)) == [None]
    assert made.reopened(1.0) is None
    assert (made.generated, made.released, made.extended) == ([30, 31], 3, 0)
    assert kinds(made) == {"reasoning": 2, "wasted": 1}


def test_no_bias_where_one_only_watches() -> None:
    """In observe mode and in the held-out arm the model is left as it is."""
    policy = Tilt(bias=2, slope=1000, every=1)
    assert session(policy).bias == 2
    for spare in ({"observe": True}, {"hold_out": True}):
        watched = session(policy, **spare)
        assert watched.bias == 0
        assert fed(watched, ("So", 30), (" it", 31)) == [None] * 2


def test_the_policy_sees_what_was_put_in() -> None:
    """It is a piece like any other: counted, and looked at."""
    seen: list[Event] = []

    def look(event: Event) -> Extend | None:
        seen.append(event)
        return Extend() if isinstance(event, Closing) else None

    made = session(Scripted(look, Needs(thoughts=True, extends=True)))
    fed(made, ("So", 30), ("", END))
    made.reopened(2.0)
    assert seen[1:] == [Closing(1, 0.0), Thought("\nWait", (22, 23), 3, 2.0)]


def test_an_end_in_a_composition() -> None:
    """One member that wants it to go on is enough."""
    for policy in (AnyOf((EAGER, AT_LEAST)), AllOf((AT_LEAST, EAGER))):
        assert fed(session(policy), ("So", 30), ("", END))[-1] == Reopen(1, 1, 1, WAIT)


def test_a_probe_that_an_extension_outran() -> None:
    """Its result is counted and not judged, and the next cue is probed again."""
    made = session(AnyOf((EAGER, AT_LEAST)))
    ask = fed(made, ("So ", 30), ("Wait", 31), (",", 32))[-1]
    assert isinstance(ask, Ask)
    assert fed(made, ("", END)) == [Reopen(3, 3, 3, WAIT)]
    made.reopened(1.0)
    assert made.probed(result(ask.position, "7", 0.99, ask.probe)) is None
    asks = [order for order in fed(made, (" no. ", 33), ("Hmm", 34), (",", 35)) if order]
    assert [type(order) for order in asks] == [Ask]


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
    made = session(NoThinking(), prompt=prompt)
    said = Said("I have finished.", (24, 25, 26))
    opened = START in prompt
    cut = Cut(kept, kept - (not opened), CLOSING, said)
    assert fed(made, *pieces)[-1] == cut
    assert made.ledger.reasoning + made.ledger.marker == kept + 3
    made.refused("resume-failed")
    assert made.ledger.reasoning + made.ledger.marker == sum(len(ids) for _, *ids in pieces)
