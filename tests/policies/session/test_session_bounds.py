"""How a trace opens and ends, and how its last chunk is counted."""

from __future__ import annotations

import pytest

from adjourn.policies.events import (
    Event,
    TraceEnded,
)
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs
from adjourn.policies.session.states import State
from tests.policies.session_driver import ANSWER, END
from tests.policies.session_helpers import (
    EAGER_DEER,
    START,
    AlwaysProbe,
    ScriptedPolicy,
    feed_all,
    make_session,
    token_counts,
)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ((5, START), State.THINKING),
        ((5, START, 6), State.THINKING),
        ((5,), State.OPENING),
        ((5, START, END), State.OPENING),
        ((START, END, 5, START), State.THINKING),
        ((), State.OPENING),
    ],
)
def test_the_prompts_last_marker_decides_whether_a_trace_is_open(
    prompt: tuple[int, ...], expected: State
) -> None:
    """A trace is open if the last marker among the prompt's ids opens one."""
    session = make_session(Never(), prompt=prompt)
    assert session.state is expected
    assert session.ledger.prompt == len(prompt)


def test_the_model_opens_the_trace() -> None:
    """If the prompt opens no trace, the first generated id may; the marker is not reasoning."""
    session = make_session(Never(), prompt=(5,))
    feed_all(session, ("", START), ("a", 7))
    assert session.state is State.THINKING
    assert token_counts(session) == {"marker": 1, "reasoning": 1}
    assert session.released_chunks == 2


def test_an_answer_without_a_trace_is_released_at_once() -> None:
    """If the first id opens no trace, everything is the answer."""
    session = make_session(Never(), prompt=(5,))
    session.feed("", (7,), 0.0, answering=True)
    session.feed("", (8, 9), 0.0, answering=True)
    assert (session.state, session.released_chunks) == (State.ANSWERING, 2)
    assert token_counts(session) == {"answer": 3}


def test_a_first_chunk_without_ids_is_released_at_once() -> None:
    """It holds only the role, so it does not decide whether a trace opens."""
    session = make_session(EAGER_DEER, prompt=(5,))
    assert session.feed("", (), 0.0) is None
    assert (session.state, session.released_chunks) == (State.OPENING, 1)


def test_reasoning_without_ids_is_passed_through() -> None:
    """The policy is muted if the engine sends no ids."""
    session = make_session(EAGER_DEER, prompt=(5,))
    feed_all(session, ("",), ("Wait, so",), (" on",))
    assert session.released_chunks == 3
    assert session.mute_reason == "no-marker"


def test_reasoning_without_a_marker_mutes_the_policy() -> None:
    """The model uses another dialect: its stream is left alone."""
    session = make_session(EAGER_DEER, prompt=(5,))
    assert feed_all(session, ("so", 7), (" Wait,", 8), (" so", 9)) == [None] * 3
    assert (session.mute_reason, session.released_chunks) == ("no-marker", 3)


@pytest.mark.parametrize(
    ("ids", "answering", "finish_reason", "expected"),
    [
        ((END,), False, None, {"reasoning": 1, "marker": 1}),
        ((51, END, 98, 99), True, None, {"reasoning": 2, "marker": 1, "answer": 2}),
        ((98, 99), True, None, {"reasoning": 1, "answer": 2}),
        ((51, 52), False, "length", {"reasoning": 3}),
        ((END, END), True, None, {"reasoning": 1, "marker": 1, "answer": 1}),
        ((), False, "stop", {"reasoning": 1}),
    ],
)
def test_the_last_chunk_is_divided_in_the_ledger(
    ids: tuple[int, ...], answering: bool, finish_reason: str | None, expected: dict[str, int]
) -> None:
    """One chunk may hold the end of the trace, the marker and the beginning of the answer."""
    session = make_session(Never())
    session.feed("a", (50,), 0.0)
    session.feed("b", ids, 0.0, answering=answering, finish_reason=finish_reason)
    assert session.state is State.ANSWERING
    assert token_counts(session) == expected


def test_a_whole_response_in_one_chunk() -> None:
    """Marker, trace, marker and answer at once."""
    session = make_session(EAGER_DEER, prompt=(5,))
    session.feed("Wait, 7", (START, 50, 51, END, 99), 0.0, answering=True, finish_reason="stop")
    session.on_stream_end()
    assert token_counts(session) == {"marker": 2, "reasoning": 2, "answer": 1}
    assert session.released_chunks == 1


def test_the_policy_sees_the_end_of_the_trace() -> None:
    """It gets one ``TraceEnded`` when the trace ends by itself."""
    events: list[Event] = []
    session = make_session(ScriptedPolicy(events.append, Needs()))
    feed_all(session, ("a", 50), ("b", 51, 52))
    session.feed("", (END,), 7.0)
    session.feed("", (ANSWER,), 8.0, answering=True)
    assert events == [TraceEnded(3, 7.0)]


@pytest.mark.parametrize(("finish_reason", "recorded"), [(None, 40), ("stop", 40), ("length", 0)])
def test_a_truncated_trace_is_not_recorded_as_a_length(
    finish_reason: str | None, recorded: int
) -> None:
    """A trace that the token limit ended shows nothing about its natural length."""

    class RecordingModel(AlwaysProbe):
        lengths: list[int]

        def record_trace_length(self, position: int) -> None:
            self.lengths.append(position)

    cost_model = RecordingModel()
    cost_model.lengths = []
    session = make_session(Never(), cost_model=cost_model)
    session.feed("a", range(50, 90), 0.0)
    session.feed("", (END,) if finish_reason is None else (), 1.0, finish_reason=finish_reason)
    assert cost_model.lengths == ([recorded] if recorded else [])
