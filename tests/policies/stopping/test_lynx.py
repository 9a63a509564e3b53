"""``lynx`` requests hidden states at every cue, and stops if its set is exactly {"ready"}."""

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

PROBE = Probe(inducer="", max_tokens=1, close_trace=False, hidden_states=True)
SURE, UNSURE, NO = (make_hidden_states(value, 0, 0, 0) for value in (4, 0, -4))
"""p = 0.98, as only ready places in the calibration have it; 0.5, as both kinds have it; 0.02."""
OVERLAPPING = {
    "ready": [0.4 + n / 165 for n in range(99)],
    "not_ready": [n / 165 for n in range(99)],
}


def reply_to(policy: Lynx, hidden_states: HiddenStates | None) -> Command | None:
    """Its reply to a probe with these hidden states."""
    stopper = policy.start()
    assert stopper.observe(cue_checkpoint(7)) == PROBE
    return stopper.observe(probe_result(7, "W", probe=PROBE, hidden_states=hidden_states))


def test_it_stops_if_the_set_is_exactly_ready() -> None:
    """At the cue, with p as its confidence."""
    stop = reply_to(Lynx(make_classifier()), SURE)
    assert isinstance(stop, Stop)
    assert (stop.reason, stop.position) == ("ready", 7)
    assert stop.confidence == pytest.approx(0.982, abs=1e-3)


@pytest.mark.parametrize(
    ("hidden", "delta"),
    [
        (UNSURE, 0.005),  # too few calibration cues to exclude a label: both
        (UNSURE, 0.05),  # both
        (NO, 0.05),  # "not-ready" alone
        (UNSURE, 0.9),  # the empty set
        (None, 0.05),  # no hidden states
    ],
)
def test_any_other_set_does_not_stop(hidden: HiddenStates | None, delta: float) -> None:
    """Both labels, "not-ready" alone, or none."""
    assert reply_to(Lynx(make_classifier(calibration=OVERLAPPING), delta), hidden) is None


def test_a_calibration_too_small_for_delta_never_stops() -> None:
    """18 cues are too few for 0.05, which needs 19."""
    few = {"ready": [0.9] * 50, "not_ready": [0.1] * 18}
    assert reply_to(Lynx(make_classifier(calibration=few)), SURE) is None
    assert reply_to(Lynx(make_classifier(calibration=few), delta=0.06), SURE) is not None


def test_it_probes_at_every_cue_and_only_at_cues() -> None:
    """After a failed probe too."""
    stopper = Lynx(make_classifier()).start()
    assert stopper.observe(cue_checkpoint(1)) == PROBE
    assert stopper.observe(probe_failed(1, PROBE)) is None
    assert stopper.observe(boundary_checkpoint("paragraph", 2)) is None
    assert stopper.observe(cue_checkpoint(3)) == PROBE


def test_hidden_states_of_another_shape_mute_it() -> None:
    """The session continues without the policy."""
    session = make_session(Lynx(make_classifier()))
    feed_all(session, ("So", 30), (" Wait", 31), (",", 32))
    result = probe_result(
        1, "W", probe=PROBE, hidden_states=make_hidden_states(1, width=1, layers=(2,))
    )
    assert session.on_probe_result(result) is None
    assert session.mute_reason == "policy-error"


def test_its_needs_are_those_of_its_classifier() -> None:
    """The layers and the model. An untrained one has neither, and is only for recording."""
    needs = Lynx(make_classifier()).needs
    assert (needs.cues, needs.probes) == (True, True)
    assert needs.hidden_states == {Layer(2, 2), Layer(5, 2)}
    assert needs.models == {"small"}
    assert Lynx(UNTRAINED).needs.models == Lynx(UNTRAINED).needs.hidden_states == frozenset()
    assert reply_to(Lynx(UNTRAINED), SURE) is None


def test_a_specification_names_its_classifier() -> None:
    """By the option ``probe``, alone, in a request's options, or in a composition."""
    probes = {"mine": make_classifier()}
    assert parse("lynx(probe='mine', delta=0.1)", readiness_probes=probes) == Lynx(
        make_classifier(), 0.1
    )
    assert parse("lynx", {"probe": "mine"}, probes) == Lynx(make_classifier())
    composed = parse("any_of(lynx(probe='mine'), loop)", readiness_probes=probes)
    assert composed.needs.models == {"small"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lynx", "must name a probe that `adjourn learn` made: mine"),
        ("lynx(probe='other')", "must name a probe"),
        ("lynx(probe=3)", "must be the name of a probe"),
        ("lynx(probe='mine', delta=0)", "delta must lie"),
        ("lynx(probe='mine', delta=1.0)", "delta must lie"),
    ],
)
def test_invalid_options_are_refused(text: str, message: str) -> None:
    """The message names the classifiers that are configured."""
    with pytest.raises(BadPolicy, match=message):
        parse(text, readiness_probes={"mine": make_classifier()})


def test_without_any_classifier_the_message_says_so() -> None:
    """``lynx`` cannot be used before ``adjourn learn`` has made one."""
    with pytest.raises(BadPolicy, match="none is configured"):
        parse("lynx")
