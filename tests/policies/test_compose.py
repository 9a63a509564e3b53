"""``any_of`` and ``all_of``: several policies over one trace, one probe in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import pytest

from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.events import (
    Checkpoint,
    Event,
    Probe,
    ProbeFailed,
    ProbeResult,
    ReasoningChunk,
    Stop,
)
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.loop import Loop
from tests.policies.session_helpers import (
    ScriptedPolicy,
    cue_checkpoint,
    interval_checkpoint,
    probe_failed,
    probe_result,
    reasoning_chunk,
)

GATE, TRIAL, OTHER = Probe(max_tokens=1), Probe(max_tokens=20), Probe(max_tokens=7)


def probing(probe: Probe, reply: Callable[[ProbeResult], Stop | None]) -> ScriptedPolicy:
    """A policy that sends ``probe`` at each checkpoint and replies to its result."""

    def script(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            return probe
        return reply(event) if isinstance(event, ProbeResult) else None

    return ScriptedPolicy(script)


def stop_at_result(event: ProbeResult) -> Stop:
    return Stop("yes", event.position, 0.9)


def continue_at_result(event: ProbeResult) -> None:
    return None


def test_any_of_stops_when_one_does() -> None:
    """The member's stop is the composition's, with its reason."""
    stopper = AnyOf((Deer(), Budget(max=10))).start()
    assert stopper.observe(reasoning_chunk("end.", 1, position=9)) is None
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) == Stop("budget")


def test_any_of_stops_after_a_members_probe() -> None:
    """The composition returns the member's probes, and the member gets their results."""
    stopper = AnyOf((Loop(), Deer())).start()
    assert stopper.observe(cue_checkpoint(5)) == GATE
    assert stopper.observe(probe_result(5, "7", 0.9, GATE, finished=False)) == TRIAL
    assert stopper.observe(probe_result(5, "7", 0.99, TRIAL)) == Stop(
        "confident", 5, pytest.approx(0.99)
    )


def test_any_of_stops_while_a_probe_runs() -> None:
    """A member without probes does not wait for another member's probe."""
    stopper = AnyOf((Deer(), Budget(max=10))).start()
    assert stopper.observe(cue_checkpoint(5)) == GATE
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) == Stop("budget")


def test_members_with_the_same_query_share_its_result() -> None:
    """One probe is sent, and both members get its result."""
    received: list[str] = []

    def recording(name: str) -> ScriptedPolicy:
        return probing(TRIAL, lambda event: received.append(name))

    stopper = AnyOf((recording("one"), recording("two"))).start()
    assert stopper.observe(cue_checkpoint(5)) == TRIAL
    assert stopper.observe(probe_result(5, probe=TRIAL)) is None
    assert received == ["one", "two"]


def test_members_with_different_queries_take_turns() -> None:
    """One probe is in flight at a time; each member gets its own result only."""
    stopper = AnyOf((probing(TRIAL, continue_at_result), probing(OTHER, stop_at_result))).start()
    assert stopper.observe(cue_checkpoint(5)) == TRIAL
    assert stopper.observe(reasoning_chunk("x", 1, position=6)) is None
    assert stopper.observe(probe_result(5, probe=TRIAL)) == OTHER
    assert stopper.observe(probe_result(5, probe=OTHER)) == Stop("yes", 5, 0.9)


def test_after_a_failed_probe_the_next_query_is_sent() -> None:
    """Only the member whose probe failed gets the failure."""
    stopper = AnyOf((probing(TRIAL, stop_at_result), probing(OTHER, stop_at_result))).start()
    assert stopper.observe(cue_checkpoint(5)) == TRIAL
    assert stopper.observe(probe_failed(5, TRIAL)) == OTHER
    assert stopper.observe(probe_failed(5, OTHER)) is None
    assert stopper.observe(cue_checkpoint(9)) == TRIAL


def test_all_of_stops_when_all_do() -> None:
    """The stop has both reasons and the lower confidence."""

    def stop_with_higher_confidence(event: ProbeResult) -> Stop:
        return Stop("higher", event.position, 0.99)

    stopper = AllOf(
        (probing(TRIAL, stop_at_result), probing(OTHER, stop_with_higher_confidence))
    ).start()
    assert stopper.observe(cue_checkpoint(5)) == TRIAL
    assert stopper.observe(probe_result(5, probe=TRIAL)) == OTHER
    assert stopper.observe(probe_result(5, probe=OTHER)) == Stop("higher+yes", 5, 0.9)


def test_all_of_needs_agreement_at_one_checkpoint() -> None:
    """Members with probes that stop at different checkpoints do not agree."""
    first = probing(TRIAL, lambda event: stop_at_result(event) if event.position == 5 else None)
    second = probing(OTHER, lambda event: stop_at_result(event) if event.position == 9 else None)
    stopper = AllOf((first, second)).start()
    for position in (5, 9):
        assert stopper.observe(cue_checkpoint(position)) == TRIAL
        assert stopper.observe(probe_result(position, probe=TRIAL)) == OTHER
        assert stopper.observe(probe_result(position, probe=OTHER)) is None


def test_a_member_without_probes_stays_agreed() -> None:
    """A budget that is used up stays used up at later checkpoints."""
    stopper = AllOf((Budget(max=10), probing(TRIAL, stop_at_result))).start()
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) is None
    assert stopper.observe(cue_checkpoint(20)) == TRIAL
    stop = stopper.observe(probe_result(20, probe=TRIAL))
    assert isinstance(stop, Stop)
    assert (stop.reason, stop.confidence) == ("budget+yes", 0.9)


def test_all_of_with_never_never_stops() -> None:
    """Trap 6: the stops of the other members are not enough."""
    stopper = AllOf((Never(), Budget(max=1), probing(TRIAL, stop_at_result))).start()
    for position in range(1, 200, 5):
        assert stopper.observe(reasoning_chunk("end.", 1, position=position)) is None
        assert stopper.observe(cue_checkpoint(position)) == TRIAL
        assert stopper.observe(probe_result(position, probe=TRIAL)) is None


def test_a_query_in_flight_is_dropped_if_its_member_stops() -> None:
    """The member has decided meanwhile, so it gets no result and the probe is not repeated."""
    stopper = AllOf((AnyOf((Deer(), Budget(max=10))), probing(OTHER, continue_at_result))).start()
    assert stopper.observe(cue_checkpoint(5)) == GATE
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) is None
    assert stopper.observe(probe_result(5, "7", 0.99, GATE)) == OTHER
    assert stopper.observe(probe_result(5, probe=OTHER)) is None


def test_a_waiting_query_is_dropped_if_its_member_stops() -> None:
    """A member that has decided while it waited for its turn sends no probe."""
    stopper = AllOf((probing(OTHER, continue_at_result), AnyOf((Deer(), Budget(max=10))))).start()
    assert stopper.observe(cue_checkpoint(5)) == OTHER
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) is None
    assert stopper.observe(probe_result(5, probe=OTHER)) is None


def test_a_stopped_member_gets_no_events_until_the_next_checkpoint() -> None:
    """Its stop stays valid until a checkpoint makes it decide again."""
    seen: list[Event] = []

    def script(event: Event) -> Any:
        seen.append(event)
        return Stop("at once")

    stopper = AllOf((ScriptedPolicy(script, Needs(reasoning_chunks=True)), Never())).start()
    assert [stopper.observe(reasoning_chunk("x", n, position=n)) for n in range(5)] == [None] * 5
    assert len(seen) == 1


def test_compositions_nest() -> None:
    """A composition is a policy like any other."""
    policy = AnyOf((AllOf((Deer(), probing(OTHER, stop_at_result))), Budget(max=100)))
    stopper = policy.start()
    assert stopper.observe(cue_checkpoint(5)) == GATE
    assert stopper.observe(probe_result(5, "7", 0.99, GATE, finished=False)) == TRIAL
    assert stopper.observe(probe_result(5, "7", 0.99, TRIAL)) == OTHER
    stop = stopper.observe(probe_result(5, probe=OTHER))
    assert stop == Stop("confident+yes", 5, 0.9)


def test_needs_are_combined() -> None:
    """They have everything that any member needs, at the shortest interval."""
    policy = AnyOf((Deer(), Convergence(every=48), Convergence(every=64), Loop()))
    answer = frozenset({"answer"})
    expected = Needs(cues=True, interval=48, reasoning_chunks=True, probes=True, inducers=answer)
    assert policy.needs == expected
    assert AllOf((Never(),)).needs == Needs()


@pytest.mark.parametrize("field", fields(Needs), ids=lambda field: field.name)
def test_each_field_of_needs_is_combined(field: Field[Any]) -> None:
    """It does not matter which of the two has it."""
    value: Any = {"bool": True, "int": 3, "float": 0.5}.get(str(field.type), frozenset({"x"}))
    one = Needs(**{field.name: value})
    assert one | Needs() == Needs() | one == one


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
def test_a_composition_without_members_is_refused(kind: Callable[[tuple[()]], Any]) -> None:
    """``all_of`` without members would stop every trace."""
    with pytest.raises(ValueError, match="at least one"):
        kind(())


def test_stoppers_share_no_state() -> None:
    """Each trace has a stopper of its own."""
    policy = AllOf((Budget(max=1), Budget(max=2)))
    assert policy.start().observe(reasoning_chunk("end.", 1, position=5)) == Stop("budget")
    assert policy.start().observe(reasoning_chunk("end.", 1, position=1)) is None


def test_results_without_a_query_are_ignored() -> None:
    """A result that no member waits for changes nothing."""
    stopper = AnyOf((probing(TRIAL, stop_at_result),)).start()
    events: list[Event] = [
        probe_result(5, probe=OTHER),
        ProbeFailed(OTHER, 5, "error", 0.0),
        ReasoningChunk("", (), 0, 0.0),
    ]
    assert [stopper.observe(event) for event in events] == [None] * 3
    assert stopper.observe(interval_checkpoint(9)) == TRIAL
