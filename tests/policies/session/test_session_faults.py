"""Whatever goes wrong with a policy, a probe or a cut, the stream goes on."""

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
    raise RuntimeError("a policy's own fault")


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
def test_whatever_a_policy_does_the_stream_goes_on(
    prompt: tuple[int, ...], script: Callable[[Event], Any], needs: Needs
) -> None:
    """Trap 6, and every other: what a policy returns or raises never breaks the response."""
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


def test_a_policy_that_fails_is_muted() -> None:
    """It is asked no more, its error is kept for the log, and what was held goes out."""
    heard: list[Event] = []

    def script(event: Event) -> Any:
        heard.append(event)
        raise RuntimeError("mine")

    made = make_session(ScriptedPolicy(script, Needs(cues=True, interval=1, reasoning_chunks=True)))
    feed_all(made, ("Wait, a", 50, 51), (" Wait, b", 52, 53))
    made.feed("", (END,), 0.0)
    assert (made.mute_reason, str(made.policy_error), len(heard)) == ("policy-error", "mine", 1)
    assert made.released_chunks == 3


def test_a_policy_that_fails_at_a_probes_result() -> None:
    """The stream goes on from where it was held."""

    def script(event: Event) -> Any:
        if isinstance(event, ProbeResult):
            raise ValueError("mine")
        return Probe()

    made = make_session(ScriptedPolicy(script))
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    assert made.on_probe_result(probe_result(1)) is None
    assert (made.state, made.mute_reason, made.released_chunks) == (
        State.THINKING,
        "policy-error",
        3,
    )


@pytest.mark.parametrize("returned", [True, "stop", 0, [], Stop])
def test_what_is_no_command_is_a_policys_error(returned: object) -> None:
    """A command is a Probe or a Stop; anything else is a mistake, and said so."""
    made = make_session(ScriptedPolicy(lambda event: returned, CHUNK_NEEDS))
    assert made.feed("a", (50,), 0.0) is None
    assert made.mute_reason == "policy-error"
    assert made.policy_error is not None


def test_a_policy_that_cannot_start_is_muted() -> None:
    """A request is not lost to a policy that fails before it has seen anything."""

    class Broken(Never):
        def start(self) -> Any:
            raise OverflowError("mine")

    made = make_session(Broken())
    feed_all(made, ("a", 50), (" Wait, b", 51))
    assert (made.mute_reason, made.released_chunks) == ("policy-error", 2)


def test_one_probe_is_in_flight_at_a_time() -> None:
    """A policy that asks at every piece gets its first question answered before a second."""
    made = make_session(
        ScriptedPolicy(lambda event: Probe(), Needs(reasoning_chunks=True, probes=True))
    )
    asks = feed_all(made, ("a", 50), ("b", 51), ("c", 52))
    assert [type(ask) for ask in asks] == [SendProbe, type(None), type(None)]
    assert made.probe_count == 1


def test_a_question_at_a_thought_is_about_its_place() -> None:
    """Where the beginning of a cue is held back, the probe is asked before it, and says so."""
    needs = Needs(cues=True, reasoning_chunks=True, probes=True)

    def script(event: Event) -> Any:
        return Probe() if isinstance(event, ReasoningChunk) and event.position == 2 else None

    made = make_session(ScriptedPolicy(script, needs))
    assert feed_all(made, ("a", 50), (" W", 51))[-1] == SendProbe(Probe(), 1, 1, CLOSING)


def test_the_latest_cue_that_came_beside_a_probe_is_looked_at_next() -> None:
    """A probe that says no is followed by one at the latest of the cues that it kept waiting."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52), (" Hmm", 53), (".", 54), (" Wait", 55))
    feed_all(made, (" b", 56))
    ask = made.on_probe_result(probe_result(1, "7", 0.5))
    assert isinstance(ask, SendProbe)
    assert (ask.position, ask.kept, made.released_chunks) == (5, 5, 5)
    assert made.on_probe_result(probe_result(5, "7", 0.5)) is None
    assert (made.state, made.released_chunks) == (State.THINKING, 7)
    assert made.probe_count == 2


def test_a_cue_beside_the_probe_of_another_in_its_piece_is_not_lost() -> None:
    """Of two cues that become certain at once the second waits for the first's probe."""
    made = make_session(EAGER_DEER)
    first = feed_all(made, (".", 50), (" Wait", 51), (", no. Hmm, so", 52, 53))[-1]
    second = made.on_probe_result(probe_result(1, "7", 0.5))
    assert [ask.position for ask in (first, second) if isinstance(ask, SendProbe)] == [1, 2]


def test_a_cue_that_was_kept_waiting_does_not_outlive_its_trace() -> None:
    """Where the trace ends first, nothing is asked any more."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52), (" Hmm", 53), (".", 54))
    made.feed("", (END, ANSWER), 0.0, answering=True)
    assert made.on_probe_result(probe_result(1, "7", 0.5)) is None
    assert made.state is State.ANSWERING


def test_a_late_result_is_counted_and_not_judged() -> None:
    """A result for another place, or for a trace that is over, costs what it cost."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    assert made.on_probe_result(probe_result(0, "7", 0.99), prefilled=5) is None
    assert (made.state, made.ledger.probe, made.ledger.prefilled) == (State.PROBING, 2, 5)
    assert isinstance(made.on_probe_result(probe_result(1, "7", 0.99), prefilled=6), Cut)
    assert made.ledger.prefilled == 11


def test_a_mute_keeps_its_first_reason() -> None:
    """What went wrong first is what is told."""
    made = make_session(Never())
    made.mute("first")
    made.mute("second")
    assert made.mute_reason == "first"
