"""The session's looks: what they cost, where they may be, and what they ask."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.events import (
    Checkpoint,
    Event,
    Probe,
    ReasoningChunk,
    Stop,
)
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import Cut, SendProbe
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.stopping.deer import Deer
from tests.policies.session_driver import END
from tests.policies.session_helpers import (
    CHUNK_NEEDS,
    CLOSING,
    EAGER_DEER,
    GATE_PROBE,
    AlwaysProbe,
    NeverProbe,
    ScriptedPolicy,
    feed_all,
    make_session,
    probe_result,
    token_counts,
)

# -- prices ------------------------------------------------------------------------------------


def test_a_probe_that_is_too_dear_is_not_sent() -> None:
    """The policy hears that it failed, the text goes on, nothing is asked."""
    heard: list[Any] = []

    def script(event: Event) -> Any:
        heard.append((type(event).__name__, getattr(event, "reason", None)))
        return Probe() if isinstance(event, Checkpoint) else None

    made = make_session(ScriptedPolicy(script), appraiser=NeverProbe())
    assert feed_all(made, (".", 50), (" Wait", 51), (" a", 52)) == [None] * 3
    assert heard == [("Checkpoint", None), ("ProbeFailed", "price")]
    assert (made.state, made.released_chunks, made.probe_count) == (State.THINKING, 3, 0)


def test_a_second_question_at_a_place_is_not_priced_again() -> None:
    """Gate and trial answer are one look."""
    looked: list[tuple[int, int]] = []

    class Counting(AlwaysProbe):
        def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
            looked.append((position, earlier_probes))
            return True

    made = make_session(Deer(gap=0), appraiser=Counting())
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(
        made.on_probe_result(probe_result(1, "7", 0.9, GATE_PROBE, finished=False)), SendProbe
    )
    assert made.on_probe_result(probe_result(1, "7", 0.5)) is None
    feed_all(made, (" Wait", 53), (" b", 54))
    assert looked == [(1, 0), (3, 1)]


def test_a_series_is_priced_where_it_begins() -> None:
    """A policy that cannot stop before its third look is not starved of its second, and what came
    of the three, and of those behind them, is learned by the trace's end."""
    asked: list[tuple[int, int]] = []
    came: list[tuple[int, bool]] = []

    class Counting(ProbeCostModel):
        def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
            asked.append((earlier_probes, checkpoints))
            return True

        def record_outcome(self, earlier_probes: int, *, stopped: bool) -> None:
            came.append((earlier_probes, stopped))

    policy = ScriptedPolicy(
        lambda event: Probe() if isinstance(event, Checkpoint) else None,
        Needs(cues=True, probes=True, min_checkpoints=3),
    )

    def looked(times: int) -> Session:
        made = make_session(policy, appraiser=Counting())
        for look in range(times):
            feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
            made.on_probe_result(probe_result(1 + 3 * look, "7", 0.5))
        return made

    made = looked(5)
    assert asked == [(0, 3), (1, 1), (2, 1)]
    assert came == [(1, False), (2, False)]
    made.feed("", (END,), 9.0)
    assert came[2:] == [(0, False)]


@pytest.mark.parametrize("certainty", [0.5, 0.99])
def test_the_price_is_measured_whatever_the_probe_says(certainty: float) -> None:
    """A second's probe at a hundred tokens a second costs a hundred tokens, cut or not."""
    appraiser = ProbeCostModel()
    made = make_session(EAGER_DEER, appraiser=appraiser)
    now = 0.0
    for token in range(99):
        now = token * 0.01
        made.feed("x", (token + 50,), now)
    assert isinstance(made.feed(" Wait, so", (7,), 0.99), SendProbe)
    for step in range(100):
        made.feed("x", (step + 50,), 1.0 + step * 0.01)
    made.on_probe_result(probe_result(99, "7", certainty, seconds=1.0, at=1.99))
    assert appraiser.cost == pytest.approx(100, rel=0.05)


# -- ends of sentences, paragraphs and steps ----------------------------------------------------

ENDS = Needs(sentences=True, paragraphs=True, probes=True)


def shown_checkpoints(*pieces: str, needs: Needs = ENDS) -> list[tuple[str, int]]:
    """(kind, position) of the checkpoints that a policy is shown of these one-token pieces."""
    seen: list[Checkpoint] = []

    def look(event: Event) -> None:
        if isinstance(event, Checkpoint):
            seen.append(event)

    feed_all(make_session(ScriptedPolicy(look, needs)), *((piece, 30) for piece in pieces))
    return [(event.kind, event.position) for event in seen]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["It is 7", ".", " So"], [("sentence", 2)]),
        (["It is 7", ".", "\n\n", "So"], [("sentence", 2), ("paragraph", 2)]),
        (["It is 7", ".\n\n", "So"], [("sentence", 2), ("paragraph", 2)]),
        (["It is 7. So"], [("sentence", 0)]),  # trap 2: no cut in the middle of a piece
        (["3", ".", "14"], []),
    ],
)
def test_where_ends_are(pieces: list[str], expected: list[tuple[str, int]]) -> None:
    """Behind the text that ended, before the space that follows, where the pieces allow it."""
    assert shown_checkpoints(*pieces) == expected


def test_only_the_ends_that_are_needed() -> None:
    """A policy is shown what it asked for."""
    pieces = ("So", ".", "\n\n", "Wait", ",")
    assert shown_checkpoints(*pieces, needs=Needs(paragraphs=True)) == [("paragraph", 2)]
    assert shown_checkpoints(*pieces, needs=Needs(sentences=True, cues=True)) == [
        ("sentence", 2),
        ("cue", 3),
    ]


def test_a_cut_at_the_end_of_a_sentence() -> None:
    """The space behind it is held until the next text begins, and is not kept."""
    made = make_session(
        ScriptedPolicy(lambda e: Stop("x", 2) if isinstance(e, Checkpoint) else None, ENDS)
    )
    assert feed_all(made, ("It is 7", 30), (".", 31), ("\n\n", 32)) == [None] * 3
    assert made.released_chunks == 2
    assert feed_all(made, ("Wait", 33)) == [Cut(2, 2, CLOSING)]
    assert token_counts(made) == {"reasoning": 2, "closing": 3, "wasted": 2}


@pytest.mark.parametrize(
    ("probe", "closing", "ending"),
    [
        (Probe(close_trace=False, score_end=True), (), CLOSING[:2]),
        (Probe(score_end=True), CLOSING, CLOSING[:2]),
        (Probe(inducer=""), CLOSING, ()),
    ],
)
def test_what_a_probe_asks_at(
    probe: Probe, closing: tuple[int, ...], ending: tuple[int, ...]
) -> None:
    """The trace as it runs or closed, and the ids that would end it there."""
    made = make_session(
        ScriptedPolicy(lambda e: probe if isinstance(e, Checkpoint) else None, ENDS)
    )
    asked = feed_all(made, ("It is 7", 30), (".", 31), (" So", 32))[-1]
    assert asked == SendProbe(probe, 2, 2, closing, ending)


def test_a_probe_may_take_more_than_it_shows() -> None:
    """What was scored beside the drawn token is in the ledger too."""
    made = make_session(EAGER_DEER)
    ask = feed_all(made, ("So ", 30), ("Wait", 31), (",", 32))[-1]
    assert isinstance(ask, SendProbe)
    drawn = probe_result(ask.position, "7", 0.1, ask.probe)
    made.on_probe_result(drawn, decoded=9)
    assert made.ledger.probe == 9


def test_log_probabilities_reach_the_policy() -> None:
    """As the driver told them, one sequence a token."""
    seen: list[Event] = []
    made = make_session(ScriptedPolicy(seen.append, CHUNK_NEEDS))
    made.feed("so", [30, 31], 1.0, logprobs=[[-0.1, -3.0], [-0.2]])
    assert seen == [ReasoningChunk("so", (30, 31), 2, 1.0, ((-0.1, -3.0), (-0.2,)))]
