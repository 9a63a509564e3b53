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


def asking(probe: Probe, verdict: Callable[[ProbeResult], Stop | None]) -> ScriptedPolicy:
    """Asks ``probe`` at each checkpoint and judges its result."""

    def script(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            return probe
        return verdict(event) if isinstance(event, ProbeResult) else None

    return ScriptedPolicy(script)


def yes(event: ProbeResult) -> Stop:
    return Stop("yes", event.position, 0.9)


def no(event: ProbeResult) -> None:
    return None


def test_any_of_stops_when_one_does() -> None:
    """The first member's stop is the composition's, reason and all."""
    stopper = AnyOf((Deer(), Budget(max=10))).start()
    assert stopper.observe(reasoning_chunk("end.", 1, position=9)) is None
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) == Stop("budget")


def test_any_of_stops_by_probe() -> None:
    """A member's probes reach the engine and their results reach the member."""
    stopper = AnyOf((Loop(), Deer())).start()
    assert stopper.observe(cue_checkpoint(5)) == GATE
    assert stopper.observe(probe_result(5, "7", 0.9, GATE, finished=False)) == TRIAL
    assert stopper.observe(probe_result(5, "7", 0.99, TRIAL)) == Stop(
        "confident", 5, pytest.approx(0.99)
    )


def test_any_of_stops_while_a_probe_runs() -> None:
    """A member without probes waits for nobody's."""
    stopper = AnyOf((Deer(), Budget(max=10))).start()
    assert stopper.observe(cue_checkpoint(5)) == GATE
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) == Stop("budget")


def test_members_that_ask_the_same_share_the_result() -> None:
    """One probe, both judge it."""
    heard: list[str] = []

    def listening(name: str) -> ScriptedPolicy:
        return asking(TRIAL, lambda event: heard.append(name))

    stopper = AnyOf((listening("one"), listening("two"))).start()
    assert stopper.observe(cue_checkpoint(5)) == TRIAL
    assert stopper.observe(probe_result(5, probe=TRIAL)) is None
    assert heard == ["one", "two"]


def test_members_that_ask_different_things_take_turns() -> None:
    """One probe is in flight at a time; each member hears its own result only."""
    stopper = AnyOf((asking(TRIAL, no), asking(OTHER, yes))).start()
    assert stopper.observe(cue_checkpoint(5)) == TRIAL
    assert stopper.observe(reasoning_chunk("x", 1, position=6)) is None
    assert stopper.observe(probe_result(5, probe=TRIAL)) == OTHER
    assert stopper.observe(probe_result(5, probe=OTHER)) == Stop("yes", 5, 0.9)


def test_a_failed_probe_lets_the_others_have_their_turn() -> None:
    """What fails for one member is no answer to another's question."""
    stopper = AnyOf((asking(TRIAL, yes), asking(OTHER, yes))).start()
    assert stopper.observe(cue_checkpoint(5)) == TRIAL
    assert stopper.observe(probe_failed(5, TRIAL)) == OTHER
    assert stopper.observe(probe_failed(5, OTHER)) is None
    assert stopper.observe(cue_checkpoint(9)) == TRIAL


def test_all_of_stops_when_all_do() -> None:
    """Both reasons, the lesser confidence."""

    def surer(event: ProbeResult) -> Stop:
        return Stop("surer", event.position, 0.99)

    stopper = AllOf((asking(TRIAL, yes), asking(OTHER, surer))).start()
    assert stopper.observe(cue_checkpoint(5)) == TRIAL
    assert stopper.observe(probe_result(5, probe=TRIAL)) == OTHER
    assert stopper.observe(probe_result(5, probe=OTHER)) == Stop("surer+yes", 5, 0.9)


def test_all_of_wants_agreement_at_one_checkpoint() -> None:
    """A yes here and a yes there are no agreement of members that look by probe."""
    first = asking(TRIAL, lambda event: yes(event) if event.position == 5 else None)
    second = asking(OTHER, lambda event: yes(event) if event.position == 9 else None)
    stopper = AllOf((first, second)).start()
    for position in (5, 9):
        assert stopper.observe(cue_checkpoint(position)) == TRIAL
        assert stopper.observe(probe_result(position, probe=TRIAL)) == OTHER
        assert stopper.observe(probe_result(position, probe=OTHER)) is None


def test_a_member_without_probes_stays_agreed() -> None:
    """A budget that is spent stays spent."""
    stopper = AllOf((Budget(max=10), asking(TRIAL, yes))).start()
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) is None
    assert stopper.observe(cue_checkpoint(20)) == TRIAL
    stop = stopper.observe(probe_result(20, probe=TRIAL))
    assert isinstance(stop, Stop)
    assert (stop.reason, stop.confidence) == ("budget+yes", 0.9)


def test_all_of_never_with_never() -> None:
    """Trap 6: what wants everybody's consent stops for nobody's alone."""
    stopper = AllOf((Never(), Budget(max=1), asking(TRIAL, yes))).start()
    for position in range(1, 200, 5):
        assert stopper.observe(reasoning_chunk("end.", 1, position=position)) is None
        assert stopper.observe(cue_checkpoint(position)) == TRIAL
        assert stopper.observe(probe_result(position, probe=TRIAL)) is None


def test_a_member_that_decided_asks_no_more() -> None:
    """A question that its member has answered for itself meanwhile is dropped, not repeated."""
    stopper = AllOf((AnyOf((Deer(), Budget(max=10))), asking(OTHER, no))).start()
    assert stopper.observe(cue_checkpoint(5)) == GATE
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) is None
    assert stopper.observe(probe_result(5, "7", 0.99, GATE)) == OTHER
    assert stopper.observe(probe_result(5, probe=OTHER)) is None


def test_a_question_in_the_queue_is_dropped_with_its_need() -> None:
    """Who was still waiting for his turn and has decided meanwhile takes no turn."""
    stopper = AllOf((asking(OTHER, no), AnyOf((Deer(), Budget(max=10))))).start()
    assert stopper.observe(cue_checkpoint(5)) == OTHER
    assert stopper.observe(reasoning_chunk("end.", 1, position=10)) is None
    assert stopper.observe(probe_result(5, probe=OTHER)) is None


def test_a_policy_is_not_asked_behind_its_stop_before_the_next_checkpoint() -> None:
    """Until there is a new place to look at, a member that said stop sees nothing."""
    seen: list[Event] = []

    def script(event: Event) -> Any:
        seen.append(event)
        return Stop("at once")

    stopper = AllOf((ScriptedPolicy(script, Needs(reasoning_chunks=True)), Never())).start()
    assert [stopper.observe(reasoning_chunk("x", n, position=n)) for n in range(5)] == [None] * 5
    assert len(seen) == 1


def test_compositions_nest() -> None:
    """A composition is a policy like any other."""
    policy = AnyOf((AllOf((Deer(), asking(OTHER, yes))), Budget(max=100)))
    stopper = policy.start()
    assert stopper.observe(cue_checkpoint(5)) == GATE
    assert stopper.observe(probe_result(5, "7", 0.99, GATE, finished=False)) == TRIAL
    assert stopper.observe(probe_result(5, "7", 0.99, TRIAL)) == OTHER
    stop = stopper.observe(probe_result(5, probe=OTHER))
    assert stop == Stop("confident+yes", 5, 0.9)


def test_needs_are_joined() -> None:
    """The engine is asked for what any member needs, at the shortest interval."""
    policy = AnyOf((Deer(), Convergence(every=48), Convergence(every=64), Loop()))
    answer = frozenset({"answer"})
    asked = Needs(cues=True, interval=48, reasoning_chunks=True, probes=True, inducers=answer)
    assert policy.needs == asked
    assert AllOf((Never(),)).needs == Needs()


@pytest.mark.parametrize("field", fields(Needs), ids=lambda field: field.name)
def test_no_need_is_lost(field: Field[Any]) -> None:
    """Whichever member has it, in whichever place."""
    some: Any = {"bool": True, "int": 3, "float": 0.5}.get(str(field.type), frozenset({"x"}))
    one = Needs(**{field.name: some})
    assert one | Needs() == Needs() | one == one


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
def test_a_composition_of_nothing(kind: Callable[[tuple[()]], Any]) -> None:
    """All of nothing would stop everything."""
    with pytest.raises(ValueError, match="at least one"):
        kind(())


def test_one_trace_does_not_know_of_another() -> None:
    """Each start is a new beginning."""
    policy = AllOf((Budget(max=1), Budget(max=2)))
    assert policy.start().observe(reasoning_chunk("end.", 1, position=5)) == Stop("budget")
    assert policy.start().observe(reasoning_chunk("end.", 1, position=1)) is None


def test_events_that_are_nobodys() -> None:
    """A result that no member asked for changes nothing."""
    stopper = AnyOf((asking(TRIAL, yes),)).start()
    events: list[Event] = [
        probe_result(5, probe=OTHER),
        ProbeFailed(OTHER, 5, "error", 0.0),
        ReasoningChunk("", (), 0, 0.0),
    ]
    assert [stopper.observe(event) for event in events] == [None] * 3
    assert stopper.observe(interval_checkpoint(9)) == TRIAL
