"""Probes of a session: their cost, their checkpoints, and their requests."""

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


def test_a_probe_that_costs_too_much_is_not_sent() -> None:
    """The policy sees a ``ProbeFailed``, and the trace continues."""
    events: list[Any] = []

    def script(event: Event) -> Any:
        events.append((type(event).__name__, getattr(event, "reason", None)))
        return Probe() if isinstance(event, Checkpoint) else None

    session = make_session(ScriptedPolicy(script), cost_model=NeverProbe())
    assert feed_all(session, (".", 50), (" Wait", 51), (" a", 52)) == [None] * 3
    assert events == [("Checkpoint", None), ("ProbeFailed", "price")]
    assert (session.state, session.released_chunks, session.probe_count) == (State.THINKING, 3, 0)


def test_a_second_probe_at_a_checkpoint_is_not_weighed_again() -> None:
    """Gate and trial answer are weighed together, once."""
    weighed: list[tuple[int, int]] = []

    class RecordingModel(AlwaysProbe):
        def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
            weighed.append((position, earlier_probes))
            return True

    session = make_session(Deer(gap=0), cost_model=RecordingModel())
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(
        session.on_probe_result(probe_result(1, "7", 0.9, GATE_PROBE, finished=False)), SendProbe
    )
    assert session.on_probe_result(probe_result(1, "7", 0.5)) is None
    feed_all(session, (" Wait", 53), (" b", 54))
    assert weighed == [(1, 0), (3, 1)]


def test_a_series_is_weighed_at_its_first_checkpoint() -> None:
    """A policy that cannot stop before its third probe gets the first three together; the outcomes
    of the series and of each later probe are recorded by the end of the trace."""
    weighed: list[tuple[int, int]] = []
    outcomes: list[tuple[int, bool]] = []

    class RecordingModel(ProbeCostModel):
        def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
            weighed.append((earlier_probes, checkpoints))
            return True

        def record_outcome(self, earlier_probes: int, *, stopped: bool) -> None:
            outcomes.append((earlier_probes, stopped))

    policy = ScriptedPolicy(
        lambda event: Probe() if isinstance(event, Checkpoint) else None,
        Needs(cues=True, probes=True, min_checkpoints=3),
    )

    def probed(checkpoints: int) -> Session:
        session = make_session(policy, cost_model=RecordingModel())
        for index in range(checkpoints):
            feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
            session.on_probe_result(probe_result(1 + 3 * index, "7", 0.5))
        return session

    session = probed(5)
    assert weighed == [(0, 3), (1, 1), (2, 1)]
    assert outcomes == [(1, False), (2, False)]
    session.feed("", (END,), 9.0)
    assert outcomes[2:] == [(0, False)]


@pytest.mark.parametrize("certainty", [0.5, 0.99])
def test_the_cost_is_measured_whatever_the_result(certainty: float) -> None:
    """A probe of one second at 100 tokens per second costs 100 tokens, cut or not."""
    cost_model = ProbeCostModel()
    session = make_session(EAGER_DEER, cost_model=cost_model)
    now = 0.0
    for token in range(99):
        now = token * 0.01
        session.feed("x", (token + 50,), now)
    assert isinstance(session.feed(" Wait, so", (7,), 0.99), SendProbe)
    for step in range(100):
        session.feed("x", (step + 50,), 1.0 + step * 0.01)
    session.on_probe_result(probe_result(99, "7", certainty, seconds=1.0, at=1.99))
    assert cost_model.cost == pytest.approx(100, rel=0.05)


BOUNDARIES = Needs(sentences=True, paragraphs=True, probes=True)


def shown_checkpoints(*texts: str, needs: Needs = BOUNDARIES) -> list[tuple[str, int]]:
    """(kind, position) of the checkpoints that a policy sees in these one-token chunks."""
    checkpoints: list[Checkpoint] = []

    def script(event: Event) -> None:
        if isinstance(event, Checkpoint):
            checkpoints.append(event)

    feed_all(make_session(ScriptedPolicy(script, needs)), *((text, 30) for text in texts))
    return [(event.kind, event.position) for event in checkpoints]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["It is 7", ".", " So"], [("sentence", 2)]),
        (["It is 7", ".", "\n\n", "So"], [("sentence", 2), ("paragraph", 2)]),
        (["It is 7", ".\n\n", "So"], [("sentence", 2), ("paragraph", 2)]),
        (["It is 7. So"], [("sentence", 0)]),  # no cut within a chunk
        (["3", ".", "14"], []),
    ],
)
def test_boundary_checkpoints(texts: list[str], expected: list[tuple[str, int]]) -> None:
    """After the text that ended, before the space that follows, as far as the chunks allow."""
    assert shown_checkpoints(*texts) == expected


def test_only_the_boundaries_that_are_needed() -> None:
    """A policy sees the kinds of checkpoints that it declares."""
    texts = ("So", ".", "\n\n", "Wait", ",")
    assert shown_checkpoints(*texts, needs=Needs(paragraphs=True)) == [("paragraph", 2)]
    assert shown_checkpoints(*texts, needs=Needs(sentences=True, cues=True)) == [
        ("sentence", 2),
        ("cue", 3),
    ]


def test_a_cut_at_the_end_of_a_sentence() -> None:
    """The space after it is held back until the next text begins, and is not kept."""
    session = make_session(
        ScriptedPolicy(lambda e: Stop("x", 2) if isinstance(e, Checkpoint) else None, BOUNDARIES)
    )
    assert feed_all(session, ("It is 7", 30), (".", 31), ("\n\n", 32)) == [None] * 3
    assert session.released_chunks == 2
    assert feed_all(session, ("Wait", 33)) == [Cut(2, 2, CLOSING)]
    assert token_counts(session) == {"reasoning": 2, "closing": 3, "wasted": 2}


@pytest.mark.parametrize(
    ("probe", "closing", "end_ids"),
    [
        (Probe(close_trace=False, score_end=True), (), CLOSING[:2]),
        (Probe(score_end=True), CLOSING, CLOSING[:2]),
        (Probe(inducer=""), CLOSING, ()),
    ],
)
def test_the_ids_of_a_probe_request(
    probe: Probe, closing: tuple[int, ...], end_ids: tuple[int, ...]
) -> None:
    """The open or the closed trace, and the ids that would end it there."""
    session = make_session(
        ScriptedPolicy(lambda e: probe if isinstance(e, Checkpoint) else None, BOUNDARIES)
    )
    order = feed_all(session, ("It is 7", 30), (".", 31), (" So", 32))[-1]
    assert order == SendProbe(probe, 2, 2, closing, end_ids)


def test_the_ledger_counts_all_tokens_that_a_probe_decoded() -> None:
    """``decoded`` may be more than the tokens of the result."""
    session = make_session(EAGER_DEER)
    order = feed_all(session, ("So ", 30), ("Wait", 31), (",", 32))[-1]
    assert isinstance(order, SendProbe)
    result = probe_result(order.position, "7", 0.1, order.probe)
    session.on_probe_result(result, decoded=9)
    assert session.ledger.probe == 9


def test_log_probabilities_reach_the_policy() -> None:
    """As the driver passed them, one sequence per token."""
    events: list[Event] = []
    session = make_session(ScriptedPolicy(events.append, CHUNK_NEEDS))
    session.feed("so", [30, 31], 1.0, logprobs=[[-0.1, -3.0], [-0.2]])
    assert events == [ReasoningChunk("so", (30, 31), 2, 1.0, ((-0.1, -3.0), (-0.2,)))]
