"""Answers that no trigger asked for: drawn apart, or to rescue a response."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.never import Never
from adjourn.policies.session.orders import Cut
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.stopping.budget import Budget
from tests.policies.session_driver import END
from tests.policies.session_helpers import (
    CLOSING,
    CLOSING_ON_NEWLINE,
    DIALECT,
    PROMPT,
    START,
    feed_all,
    token_counts,
)


def make_session(**options: bool) -> Session:
    made = Session(Never(), DIALECT, ProbeCostModel(), **options)
    made.on_prompt(PROMPT)
    return made


@pytest.mark.parametrize(
    ("piece", "kept", "edge", "spent"),
    [
        ((END,), 3, 1, {"reasoning": 2, "marker": 1}),
        ((8, END, 9), 4, 2, {"reasoning": 3, "marker": 1, "wasted": 1}),
        ((9,), 2, 0, {"reasoning": 2, "wasted": 1}),
    ],
)
def test_an_answer_apart(
    piece: tuple[int, ...], kept: int, edge: int, spent: dict[str, int]
) -> None:
    """Behind the model's own marker, or before the piece in which an answer begins without one."""
    made = make_session(separate_answer=True)
    feed_all(made, ("a", 7), ("b", 8))
    cut = made.feed("", piece, 0.0, answering=END not in piece)
    assert cut == Cut(kept, spent["reasoning"], (), unreleased_ids=edge)
    assert made.released_chunks == 2
    assert token_counts(made) == spent
    made.feed("", (9,), 0.0, answering=True)
    made.on_resumed()
    made.on_answer_tokens(5)
    assert made.state is State.ANSWERING
    assert (made.stopped, made.rescued_finish_reason) == (False, None)
    assert token_counts(made) == spent | {"answer": 5, "wasted": spent.get("wasted", 0) + 1}


def test_an_answer_apart_without_a_trace() -> None:
    """Where nothing is thought the answer is drawn from the prompt."""
    made = Session(Never(), DIALECT, ProbeCostModel(), separate_answer=True)
    made.on_prompt((5, START, END))
    assert made.feed("", (9,), 0.0, answering=True) == Cut(0, 0, ())
    assert token_counts(made) == {"wasted": 1}


def test_an_answer_apart_that_came_whole() -> None:
    """One that began and ended in the piece that ends the trace is drawn anew as well."""
    made = make_session(separate_answer=True, rescue=True)
    feed_all(made, ("a", 7))
    assert made.feed("", (END, 9, 9), 0.0, answering=True, finish_reason="stop") == Cut(
        2, 1, (), unreleased_ids=1
    )


def test_an_answer_apart_that_is_refused() -> None:
    """The main stream's own answer is the client's, to its last token."""
    made = make_session(separate_answer=True)
    feed_all(made, ("a", 7))
    made.feed("", (END, 9), 0.0, answering=True)
    made.feed("", (9, 9), 0.0, answering=True)
    assert made.on_refused("no") is None
    assert made.state is State.ANSWERING
    assert made.released_chunks == 3
    assert token_counts(made) == {"reasoning": 1, "marker": 1, "answer": 3}


@pytest.mark.parametrize(
    ("ending", "ids", "kept", "edge", "spent"),
    [
        ("length", (9,), 2, 1, {"reasoning": 2, "closing": 3}),
        ("stop", (9,), 1, 0, {"reasoning": 1, "closing": 3, "wasted": 1}),
        ("stop", (8, 9), 2, 1, {"reasoning": 2, "closing": 3, "wasted": 1}),
        ("stop", (), 1, 0, {"reasoning": 1, "closing": 3}),
    ],
)
def test_a_rescue(
    ending: str, ids: tuple[int, ...], kept: int, edge: int, spent: dict[str, int]
) -> None:
    """A response that ends within its trace is closed there, less the end of the sequence."""
    made = make_session(rescue=True)
    feed_all(made, ("a", 7))
    cut = made.feed("b" if edge else "", ids, 0.0, finish_reason=ending)
    assert cut == Cut(kept, kept, CLOSING, unreleased_ids=edge, rescued_finish_reason=ending)
    assert made.is_switching_stream
    assert token_counts(made) == spent
    assert made.rescued_finish_reason is None
    made.on_resumed()
    assert (made.rescued_finish_reason, made.stopped) == (ending, False)


def test_a_rescue_behind_a_line() -> None:
    """The closing sequence minds the last piece's own newline."""
    made = make_session(rescue=True)
    feed_all(made, ("a", 7))
    cut = made.feed("b\n", (8,), 0.0, finish_reason="length")
    assert isinstance(cut, Cut)
    assert cut.closing == CLOSING_ON_NEWLINE


@pytest.mark.parametrize(
    "piece",
    [
        {"finish_reason": "length", "answering": True},
        {"finish_reason": "stop", "ids": (END,)},
        {"finish_reason": "content_filter"},
    ],
)
def test_what_needs_no_rescue(piece: dict[str, Any]) -> None:
    """An answer has begun, the trace was closed, or it is not the trace's length that ended it."""
    made = make_session(rescue=True)
    feed_all(made, ("a", 7))
    assert made.feed("", piece.pop("ids", (9,)), 0.0, **piece) is None
    assert made.state is State.ANSWERING


def test_a_rescue_that_is_refused() -> None:
    """The response ends as it would have."""
    made = make_session(rescue=True)
    feed_all(made, ("a", 7))
    made.feed("b", (8,), 0.0, finish_reason="length")
    assert made.on_refused("no") is None
    assert (made.released_chunks, made.rescued_finish_reason, made.ledger.closing) == (2, None, 0)


def test_a_cut_that_is_refused_when_the_trace_has_ended() -> None:
    """The answer apart is asked for then."""
    made = Session(Budget(max=1, grace=0), DIALECT, ProbeCostModel(), separate_answer=True)
    made.on_prompt(PROMPT)
    assert isinstance(feed_all(made, ("a", 7), ("b", 8))[0], Cut)
    made.feed("", (END,), 0.0)
    made.feed("", (9,), 0.0, answering=True)
    assert made.on_refused("no") == Cut(3, 2, (), unreleased_ids=1)
    assert made.is_switching_stream
