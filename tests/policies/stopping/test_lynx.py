"""``lynx`` asks for hidden states at every cue and stops where they leave nothing but ready."""

from __future__ import annotations

import pytest

from adjourn.policies.events import Command, Probe, Stop
from adjourn.policies.evidence.hidden_states import HiddenStates, Layer
from adjourn.policies.evidence.readiness import UNTRAINED
from adjourn.policies.registry import BadPolicy, parse
from adjourn.policies.stopping.lynx import Lynx
from tests.policies.readiness_fixtures import make_classifier, make_hidden_states
from tests.policies.session_helpers import (
    boundary_checkpoint,
    cue_checkpoint,
    feed_all,
    make_session,
    probe_failed,
    probe_result,
)

ASKED = Probe(inducer="", max_tokens=1, close_trace=False, hidden_states=True)
SURE, UNSURE, NO = (make_hidden_states(value, 0, 0, 0) for value in (4, 0, -4))
"""p of 0.98, which nothing that is not ready ever had, of 0.5, which could be either, and 0.02."""
OVERLAPPING = {
    "ready": [0.4 + n / 165 for n in range(99)],
    "not_ready": [n / 165 for n in range(99)],
}


def told(policy: Lynx, hidden_states: HiddenStates | None) -> Command | None:
    stopper = policy.start()
    assert stopper.observe(cue_checkpoint(7)) == ASKED
    return stopper.observe(probe_result(7, "W", probe=ASKED, hidden_states=hidden_states))


def test_it_stops_where_the_set_is_exactly_ready() -> None:
    stop = told(Lynx(make_classifier()), SURE)
    assert isinstance(stop, Stop)
    assert (stop.reason, stop.position) == ("ready", 7)
    assert stop.confidence == pytest.approx(0.982, abs=1e-3)


@pytest.mark.parametrize(
    ("hidden", "delta"),
    [
        (UNSURE, 0.005),  # too few to rule anything out: both
        (UNSURE, 0.05),  # both could be
        (NO, 0.05),  # not ready alone
        (UNSURE, 0.9),  # neither
        (None, 0.05),
    ],
)
def test_any_other_set_goes_on(hidden: HiddenStates | None, delta: float) -> None:
    assert told(Lynx(make_classifier(calibration=OVERLAPPING), delta), hidden) is None


def test_a_calibration_too_small_for_delta_never_stops() -> None:
    few = {"ready": [0.9] * 50, "not_ready": [0.1] * 18}
    assert told(Lynx(make_classifier(calibration=few)), SURE) is None
    assert told(Lynx(make_classifier(calibration=few), delta=0.06), SURE) is not None


def test_it_asks_again_at_the_next_cue_and_only_at_cues() -> None:
    stopper = Lynx(make_classifier()).start()
    assert stopper.observe(cue_checkpoint(1)) == ASKED
    assert stopper.observe(probe_failed(1, ASKED)) is None
    assert stopper.observe(boundary_checkpoint("paragraph", 2)) is None
    assert stopper.observe(cue_checkpoint(3)) == ASKED


def test_states_of_another_shape_mute_it() -> None:
    """The session goes on without it."""
    made = make_session(Lynx(make_classifier()))
    feed_all(made, ("So", 30), (" Wait", 31), (",", 32))
    probed = probe_result(
        1, "W", probe=ASKED, hidden_states=make_hidden_states(1, width=1, layers=(2,))
    )
    assert made.on_probe_result(probed) is None
    assert made.mute_reason == "policy-error"


def test_what_it_needs() -> None:
    """The layers of its probe and its model; untrained, it looks and asks for the recorder."""
    needs = Lynx(make_classifier()).needs
    assert (needs.cues, needs.probes) == (True, True)
    assert needs.hidden_states == {Layer(2, 2), Layer(5, 2)}
    assert needs.models == {"small"}
    assert Lynx(UNTRAINED).needs.models == Lynx(UNTRAINED).needs.hidden_states == frozenset()
    assert told(Lynx(UNTRAINED), SURE) is None


def test_it_is_read_with_the_probe_that_it_names() -> None:
    probes = {"mine": make_classifier()}
    assert parse("lynx(probe='mine', delta=0.1)", readiness_probes=probes) == Lynx(
        make_classifier(), 0.1
    )
    assert parse("lynx", {"probe": "mine"}, probes) == Lynx(make_classifier())
    composed = parse("any_of(lynx(probe='mine'), loop)", readiness_probes=probes)
    assert composed.needs.models == {"small"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lynx", "must name a probe that `adjourn learn` made: mine"),
        ("lynx(probe='other')", "must name a probe"),
        ("lynx(probe=3)", "must be the name of a probe"),
        ("lynx(probe='mine', delta=0)", "delta must lie"),
        ("lynx(probe='mine', delta=1.0)", "delta must lie"),
    ],
)
def test_options_that_make_no_sense(text: str, said: str) -> None:
    with pytest.raises(BadPolicy, match=said):
        parse(text, readiness_probes={"mine": make_classifier()})


def test_without_any_probe_it_says_so() -> None:
    with pytest.raises(BadPolicy, match="none is configured"):
        parse("lynx")
