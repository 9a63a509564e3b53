"""Cuts without a trigger: separate answers, and rescued responses."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.never import Never
from adjourn.policies.session.orders import Cut
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.stopping.budget import Budget
from tests.policies.session_driver import END, VOCABULARY
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
    session = Session(Never(), DIALECT, ProbeCostModel(), **options)
    session.on_prompt(PROMPT)
    return session


@pytest.mark.parametrize(
    ("ids", "kept", "unreleased", "counts"),
    [
        ((END,), 3, 1, {"reasoning": 2, "marker": 1}),
        ((8, END, 9), 4, 2, {"reasoning": 3, "marker": 1, "wasted": 1}),
        ((9,), 2, 0, {"reasoning": 2, "wasted": 1}),
    ],
)
def test_a_separate_answer(
    ids: tuple[int, ...], kept: int, unreleased: int, counts: dict[str, int]
) -> None:
    """After the model's own marker, or before the chunk that starts the answer without one."""
    session = make_session(separate_answer=True)
    feed_all(session, ("a", 7), ("b", 8))
    cut = session.feed("", ids, 0.0, answering=END not in ids)
    assert cut == Cut(kept, counts["reasoning"], (), unreleased_ids=unreleased)
    assert session.released_chunks == 2
    assert token_counts(session) == counts
    session.feed("", (9,), 0.0, answering=True)
    session.on_resumed()
    session.on_answer_tokens(5)
    assert session.state is State.ANSWERING
    assert (session.stopped, session.rescued_finish_reason) == (False, None)
    assert token_counts(session) == counts | {"answer": 5, "wasted": counts.get("wasted", 0) + 1}


def test_a_separate_answer_without_a_trace() -> None:
    """Without reasoning the answer is generated from the prompt."""
    session = Session(Never(), DIALECT, ProbeCostModel(), separate_answer=True)
    session.on_prompt((5, START, END))
    assert session.feed("", (9,), 0.0, answering=True) == Cut(0, 0, ())
    assert token_counts(session) == {"wasted": 1}


def test_a_separate_answer_replaces_one_that_is_complete() -> None:
    """An answer that came whole in the trace's last chunk is generated again too."""
    session = make_session(separate_answer=True, rescue=True)
    feed_all(session, ("a", 7))
    assert session.feed("", (END, 9, 9), 0.0, answering=True, finish_reason="stop") == Cut(
        2, 1, (), unreleased_ids=1
    )


def test_a_refused_separate_answer() -> None:
    """The client gets the main stream's own answer, to its last token."""
    session = make_session(separate_answer=True)
    feed_all(session, ("a", 7))
    session.feed("", (END, 9), 0.0, answering=True)
    session.feed("", (9, 9), 0.0, answering=True)
    assert session.on_refused("no") is None
    assert session.state is State.ANSWERING
    assert session.released_chunks == 3
    assert token_counts(session) == {"reasoning": 1, "marker": 1, "answer": 3}


@pytest.mark.parametrize(
    ("finish_reason", "ids", "kept", "unreleased", "counts"),
    [
        ("length", (9,), 2, 1, {"reasoning": 2, "closing": 3}),
        ("stop", (9,), 1, 0, {"reasoning": 1, "closing": 3, "wasted": 1}),
        ("stop", (8, 9), 2, 1, {"reasoning": 2, "closing": 3, "wasted": 1}),
        ("stop", (), 1, 0, {"reasoning": 1, "closing": 3}),
    ],
)
def test_a_response_that_ends_within_its_trace_is_rescued(
    finish_reason: str, ids: tuple[int, ...], kept: int, unreleased: int, counts: dict[str, int]
) -> None:
    """The trace is closed where it ended, without the end-of-sequence id."""
    session = make_session(rescue=True)
    feed_all(session, ("a", 7))
    cut = session.feed("b" if unreleased else "", ids, 0.0, finish_reason=finish_reason)
    assert cut == Cut(
        kept, kept, CLOSING, unreleased_ids=unreleased, rescued_finish_reason=finish_reason
    )
    assert session.is_switching_stream
    assert token_counts(session) == counts
    assert session.rescued_finish_reason is None
    session.on_resumed()
    assert (session.rescued_finish_reason, session.stopped) == (finish_reason, False)


def test_a_rescue_after_a_newline() -> None:
    """The closing sequence depends on the last chunk's newline."""
    session = make_session(rescue=True)
    feed_all(session, ("a", 7))
    cut = session.feed("b\n", (8,), 0.0, finish_reason="length")
    assert isinstance(cut, Cut)
    assert cut.closing == CLOSING_ON_NEWLINE


@pytest.mark.parametrize(
    "chunk",
    [
        {"finish_reason": "length", "answering": True},
        {"finish_reason": "stop", "ids": (END,)},
        {"finish_reason": "content_filter"},
    ],
)
def test_responses_that_need_no_rescue(chunk: dict[str, Any]) -> None:
    """An answer has started, the trace was closed, or something else ended the response."""
    session = make_session(rescue=True)
    feed_all(session, ("a", 7))
    assert session.feed("", chunk.pop("ids", (9,)), 0.0, **chunk) is None
    assert session.state is State.ANSWERING


def test_a_refused_rescue() -> None:
    """The response ends as the model ended it."""
    session = make_session(rescue=True)
    feed_all(session, ("a", 7))
    session.feed("b", (8,), 0.0, finish_reason="length")
    assert session.on_refused("no") is None
    assert (session.released_chunks, session.rescued_finish_reason, session.ledger.closing) == (
        2,
        None,
        0,
    )


def test_a_separate_answer_after_a_refused_cut() -> None:
    """If the trace has ended meanwhile, the refusal leads to a separate answer."""
    session = Session(Budget(max=1, grace=0), DIALECT, ProbeCostModel(), separate_answer=True)
    session.on_prompt(PROMPT)
    assert isinstance(feed_all(session, ("a", 7), ("b", 8))[0], Cut)
    session.feed("", (END,), 0.0)
    session.feed("", (9,), 0.0, answering=True)
    assert session.on_refused("no") == Cut(3, 2, (), unreleased_ids=1)
    assert session.is_switching_stream


@pytest.mark.parametrize("ids", [(43, 44), (46, 32)], ids=["split-id", "joiner"])
def test_a_rescue_after_a_dry_run_takes_back_no_released_chunk(ids: tuple[int, int]) -> None:
    """A character that was completed after the recorded stop is not held back at the end."""
    session = Session(
        Budget(max=1, grace=0), DIALECT, ProbeCostModel(), observe_only=True, rescue=True
    )
    session.on_prompt(PROMPT)
    feed_all(session, ("a", 7), *((VOCABULARY[token], token) for token in ids))
    assert (session.trigger is not None, session.released_chunks) == (True, 3)
    cut = session.feed("x", (8,), 0.0, finish_reason="length")
    assert cut == Cut(4, 4, CLOSING, unreleased_ids=1, rescued_finish_reason="length")
    assert session.released_chunks == 3
