"""Stops of a policy: carried out, recorded, refused, ended in place, aborted."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.compose import AnyOf
from adjourn.policies.events import (
    Event,
    ReasoningChunk,
    Stop,
)
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import Cut, SendProbe
from adjourn.policies.session.states import State
from adjourn.policies.stopping.budget import Budget
from tests.policies.session_driver import ANSWER, END
from tests.policies.session_helpers import (
    CLOSING,
    EAGER_DEER,
    ScriptedPolicy,
    feed_all,
    make_session,
    probe_result,
    token_counts,
)


def test_a_stop_without_a_position_keeps_all_tokens() -> None:
    """A budget keeps everything decoded so far, the beginning of a cue too."""
    session = make_session(AnyOf((Budget(max=2, grace=0), EAGER_DEER)))
    cut = feed_all(session, ("a", 50), (" W", 51))[-1]
    assert cut == Cut(kept=2, position=2, closing=CLOSING)
    assert session.released_chunks == 2
    assert session.trigger is not None
    assert session.trigger.stop.reason == "budget-hard"


def test_a_budget_stops_the_trace_during_a_probe() -> None:
    """The client gets exactly the kept tokens; the late probe result is counted."""
    session = make_session(AnyOf((EAGER_DEER, Budget(max=4, grace=0))))
    assert isinstance(feed_all(session, (".", 50), (" Wait", 51), (" a", 52))[-1], SendProbe)
    cut = session.feed(" bit", (53,), 0.0)
    assert cut == Cut(kept=4, position=4, closing=CLOSING)
    assert session.released_chunks == 4
    assert session.on_probe_result(probe_result(1, "7", 0.99)) is None
    assert (session.ledger.probe, session.state) == (2, State.CLOSING)


def test_a_probe_result_after_the_end_of_the_trace_is_ignored() -> None:
    """Once the model has ended its trace, no probe result cuts it."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    session.feed("", (END, ANSWER), 0.0, answering=True)
    assert (session.state, session.released_chunks) == (State.ANSWERING, 4)
    assert session.on_probe_result(probe_result(1, "7", 0.99)) is None
    session.on_stream_end()
    assert token_counts(session) == {"reasoning": 3, "marker": 1, "answer": 1, "probe": 2}


@pytest.mark.parametrize("dry_run", ["observe_only", "hold_out"])
def test_a_dry_run_records_the_stop_and_continues(dry_run: str) -> None:
    """The policy is no longer asked, and the tokens after the stop are counted."""
    session = make_session(EAGER_DEER, **{dry_run: True})
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    assert session.on_probe_result(probe_result(1, "7", 0.99)) is None
    assert session.released_chunks == 3
    assert feed_all(session, (" Wait", 53), (", Wait, no", 54, 55, 56)) == [None, None]
    session.feed("", (END,), 0.0)
    session.on_stream_end()
    assert session.trigger is not None
    assert session.trigger.action == ("observed" if dry_run == "observe_only" else "held-out")
    assert (session.trigger.position, session.trigger.tokens_after) == (1, 6)
    assert (session.probe_count, session.stopped, session.released_chunks) == (1, False, 6)


@pytest.mark.parametrize("dry_run", [{}, {"observe_only": True}])
def test_a_policy_is_not_asked_after_its_stop(dry_run: dict[str, bool]) -> None:
    """One trigger per request: not even the rest of the same chunk is shown to the policy."""
    events: list[Event] = []

    def script(event: Event) -> Any:
        events.append(event)
        return Stop(type(event).__name__)

    session = make_session(
        ScriptedPolicy(script, Needs(cues=True, interval=1, reasoning_chunks=True)), **dry_run
    )
    feed_all(session, ("Wait, a. Wait, b", 50, 51, 52), (" Wait, c", 53, 54), ("d", 55))
    assert [type(event) for event in events] == [ReasoningChunk]
    assert session.trigger is not None
    assert session.trigger.stop.reason == "ReasoningChunk"


def test_a_refused_cut_is_rolled_back() -> None:
    """Chunks, ledger and answer are those of the main stream alone."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(session.on_probe_result(probe_result(1, "7", 0.99)), Cut)
    session.feed(" bit", (53,), 0.0)
    session.feed("", (END, ANSWER), 0.0, answering=True)
    session.feed("", (ANSWER,), 0.0, answering=True, finish_reason="stop")
    session.on_refused("resume-failed")
    assert (session.state, session.released_chunks) == (State.ANSWERING, 6)
    assert token_counts(session) == {"reasoning": 4, "marker": 1, "answer": 2, "probe": 2}
    assert session.trigger is not None
    assert (session.trigger.action, session.mute_reason, session.stopped) == (
        "refused",
        "resume-failed",
        False,
    )


def test_a_trace_ended_in_place_continues_in_the_main_stream() -> None:
    """All chunks up to the marker are reasoning and go to the client; the trace's length is not
    recorded as a natural one."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(session.on_probe_result(probe_result(1, "7", 0.99)), Cut)
    session.feed(" bit", (53,), 0.0)
    assert session.released_chunks == 1
    session.on_ending_in_place()
    assert (session.state, session.released_chunks, session.stopped) == (State.THINKING, 4, True)
    assert feed_all(session, (" Wait", 54), (" more.", 55)) == [None, None]
    assert session.released_chunks == 6
    session.feed("", (END, ANSWER), 0.0, answering=True)
    session.feed("", (ANSWER,), 0.0, answering=True, finish_reason="stop")
    assert (session.state, session.released_chunks) == (State.ANSWERING, 8)
    assert token_counts(session) == {"reasoning": 6, "marker": 1, "answer": 2, "probe": 2}
    assert session.trigger is not None
    assert (session.trigger.action, session.trigger.position, session.mute_reason) == (
        "carried-out",
        1,
        None,
    )
    assert session.trigger.tokens_after is None


def test_the_model_ends_its_trace_before_the_engine_does() -> None:
    """The model's own marker and answer are among the chunks collected meanwhile."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    session.on_probe_result(probe_result(1, "7", 0.99))
    session.feed("", (END, ANSWER), 0.0, answering=True)
    session.on_ending_in_place()
    assert (session.state, session.released_chunks) == (State.ANSWERING, 4)
    assert token_counts(session) == {"reasoning": 3, "marker": 1, "answer": 1, "probe": 2}


def test_tokens_after_a_cut_are_never_released() -> None:
    """Not even at the end of the stream."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    session.on_probe_result(probe_result(1, "7", 0.99))
    session.feed(" bit", (53,), 0.0)
    session.on_resumed()
    session.on_stream_end()
    assert (session.state, session.released_chunks) == (State.DONE, 1)


def test_a_stream_that_breaks_off_releases_everything() -> None:
    """No probe in flight holds chunks back after the end."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    session.on_stream_end()
    assert session.released_chunks == 3


def test_a_possible_cue_at_the_end_of_the_stream_is_released() -> None:
    """The client gets it like any other text."""
    session = make_session(EAGER_DEER)
    feed_all(session, ("So.", 50), (" Wait", 51))
    assert session.released_chunks == 1
    session.on_stream_end()
    assert session.released_chunks == 2


@pytest.mark.parametrize("reason", ["internal-error"])
@pytest.mark.parametrize("probing", [True, False])
def test_aborting_a_pending_order_continues_the_stream(reason: str, probing: bool) -> None:
    """If the driver fails at a probe or a cut, the policy is muted and the stream goes on."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    if not probing:
        session.on_probe_result(probe_result(1, "7", 0.99))
    session.abort_pending(reason)
    assert (session.state, session.mute_reason, session.released_chunks) == (
        State.THINKING,
        reason,
        3,
    )
    assert feed_all(session, (" Wait", 53), (", no", 54)) == [None, None]
    assert session.released_chunks == 5
