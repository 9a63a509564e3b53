"""Fail open: whatever goes wrong with a policy, a probe or a cut, the stream goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adjourn.policies.events import (
    Checkpoint,
    Event,
    Probe,
    ProbeResult,
    ReasoningChunk,
    Stop,
    TraceEnded,
)
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import Cut, SendProbe
from adjourn.policies.session.states import State
from tests.policies.session_driver import ANSWER, END, Driver, chunks
from tests.policies.session_helpers import (
    CHUNK_NEEDS,
    CLOSING,
    CUE_NEEDS,
    EAGER_DEER,
    PROMPT,
    START,
    ScriptedPolicy,
    feed_all,
    make_session,
    probe_result,
)


def _raising(event: Event) -> Any:
    raise RuntimeError("an error in the policy")


@pytest.mark.parametrize(
    "needs", [Needs(), CUE_NEEDS, CHUNK_NEEDS, Needs(interval=1), CUE_NEEDS | CHUNK_NEEDS]
)
@pytest.mark.parametrize(
    "script",
    [
        _raising,
        lambda event: Stop("always"),
        lambda event: Stop("always", 3),
        lambda event: Probe(),
        lambda event: True,
        lambda event: "stop",
        lambda event: Probe() if isinstance(event, TraceEnded) else None,
        lambda event: Stop("late") if isinstance(event, TraceEnded) else None,
        lambda event: Probe() if isinstance(event, Checkpoint) else 1 // 0,
    ],
    ids=[
        "raises",
        "stops",
        "stops-there",
        "probes",
        "true",
        "text",
        "probes-late",
        "stops-late",
        "raises-later",
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, (5,)], ids=["opened", "unopened"])
def test_the_stream_goes_on_whatever_a_policy_does(
    prompt: tuple[int, ...], script: Callable[[Event], Any], needs: Needs
) -> None:
    """Nothing that a policy returns or raises breaks the response."""
    driver = Driver(make_session(ScriptedPolicy(script, needs), prompt=prompt))
    marker = () if START in prompt else (START,)
    tokens = [*marker, 32, 33, 30, 42, 32, 31, 42, 32, END, ANSWER]
    for index, chunk in enumerate(chunks(tokens, [1], "stop")):
        driver.feed(chunk, float(index))
        if driver.pending_query is not None:
            driver.deliver_result(0.5, float(index))
    if driver.pending_cut is not None:
        driver.resume(2)
    driver.end()


def test_a_policy_that_raises_is_muted() -> None:
    """It is no longer asked, its error is kept for the log, and held chunks are released."""
    events: list[Event] = []

    def script(event: Event) -> Any:
        events.append(event)
        raise RuntimeError("mine")

    session = make_session(
        ScriptedPolicy(script, Needs(cues=True, interval=1, reasoning_chunks=True))
    )
    feed_all(session, ("Wait, a", 50, 51), (" Wait, b", 52, 53))
    session.feed("", (END,), 0.0)
    assert (session.mute_reason, str(session.policy_error), len(events)) == (
        "policy-error",
        "mine",
        1,
    )
    assert session.released_chunks == 3


def test_a_policy_that_raises_at_a_probe_result_is_muted() -> None:
    """The held chunks are released."""

    def script(event: Event) -> Any:
        if isinstance(event, ProbeResult):
            raise ValueError("mine")
        return Probe()

    session = make_session(ScriptedPolicy(script))
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    assert session.on_probe_result(probe_result(1)) is None
    assert (session.state, session.mute_reason, session.released_chunks) == (
        State.THINKING,
        "policy-error",
        3,
    )


@pytest.mark.parametrize("returned", [True, "stop", 0, [], Stop])
def test_a_returned_value_that_is_no_command_mutes_the_policy(returned: object) -> None:
    """Anything but a command or None is recorded as a policy error."""
    session = make_session(ScriptedPolicy(lambda event: returned, CHUNK_NEEDS))
    assert session.feed("a", (50,), 0.0) is None
    assert session.mute_reason == "policy-error"
    assert session.policy_error is not None


def test_a_policy_that_fails_to_start_is_muted() -> None:
    """The request is served without it."""

    class Broken(Never):
        def start(self) -> Any:
            raise OverflowError("mine")

    session = make_session(Broken())
    feed_all(session, ("a", 50), (" Wait, b", 51))
    assert (session.mute_reason, session.released_chunks) == ("policy-error", 2)


def test_one_probe_in_flight_at_a_time() -> None:
    """A policy that asks at every chunk gets its first result before a second probe is sent."""
    session = make_session(
        ScriptedPolicy(lambda event: Probe(), Needs(reasoning_chunks=True, probes=True))
    )
    orders = feed_all(session, ("a", 50), ("b", 51), ("c", 52))
    assert [type(order) for order in orders] == [SendProbe, type(None), type(None)]
    assert session.probe_count == 1


def test_a_probe_at_a_chunk_is_sent_from_the_cut_point() -> None:
    """If the beginning of a cue is held back, the probe's prefix ends before it."""
    needs = Needs(cues=True, reasoning_chunks=True, probes=True)

    def script(event: Event) -> Any:
        return Probe() if isinstance(event, ReasoningChunk) and event.position == 2 else None

    session = make_session(ScriptedPolicy(script, needs))
    assert feed_all(session, ("a", 50), (" W", 51))[-1] == SendProbe(Probe(), 1, 1, CLOSING)


def test_the_latest_cue_deferred_by_a_probe_is_probed_next() -> None:
    """After an unsure probe, the latest of the cues that came meanwhile is probed."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52), (" Hmm", 53), (".", 54), (" Wait", 55))
    feed_all(session, (" b", 56))
    order = session.on_probe_result(probe_result(1, "7", 0.5))
    assert isinstance(order, SendProbe)
    assert (order.position, order.kept, session.released_chunks) == (5, 5, 5)
    assert session.on_probe_result(probe_result(5, "7", 0.5)) is None
    assert (session.state, session.released_chunks) == (State.THINKING, 7)
    assert session.probe_count == 2


def test_a_second_cue_in_the_same_chunk_is_deferred() -> None:
    """Of two cues found in one chunk, the second waits for the probe of the first."""
    session = make_session(EAGER_DEER)
    first = feed_all(session, (".", 50), (" Wait", 51), (", no. Hmm, so", 52, 53))[-1]
    second = session.on_probe_result(probe_result(1, "7", 0.5))
    assert [order.position for order in (first, second) if isinstance(order, SendProbe)] == [1, 2]


def test_a_deferred_cue_is_dropped_at_the_end_of_the_trace() -> None:
    """If the trace ends first, no probe is sent."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52), (" Hmm", 53), (".", 54))
    session.feed("", (END, ANSWER), 0.0, answering=True)
    assert session.on_probe_result(probe_result(1, "7", 0.5)) is None
    assert session.state is State.ANSWERING


def test_a_late_probe_result_is_counted_and_ignored() -> None:
    """A result for another position is in the ledger, but the policy does not see it."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52))
    assert session.on_probe_result(probe_result(0, "7", 0.99), prefilled=5) is None
    assert (session.state, session.ledger.probe, session.ledger.prefilled) == (State.PROBING, 2, 5)
    assert isinstance(session.on_probe_result(probe_result(1, "7", 0.99), prefilled=6), Cut)
    assert session.ledger.prefilled == 11


def test_the_first_mute_reason_stays() -> None:
    """What went wrong first is reported."""
    session = make_session(Never())
    session.mute("first")
    session.mute("second")
    assert session.mute_reason == "first"
