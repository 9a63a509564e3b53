"""What to record, from prompts, policies and a user's own words."""

from __future__ import annotations

import pytest

from adjourn.lab.plan import (
    BadPlan,
    RecordingPlan,
    drop_covered_probes,
    parse_needs,
    parse_probe,
    probes_of,
)
from adjourn.policies.events import Probe
from adjourn.policies.policy import Needs
from adjourn.policies.registry import BadPolicy, parse


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("deer", [Probe(max_tokens=1), Probe(max_tokens=20)]),
        ("deer(gate=0, max_tokens=9)", [Probe(max_tokens=9)]),
        ("convergence", [Probe(max_tokens=20)]),
        ("any_of(deer(max_tokens=30), convergence)", [Probe(max_tokens=n) for n in (1, 30, 20)]),
        ("deer-pro", [Probe(name) for name in ("answer", "answer-2", "answer-3", "answer-4")]),
        ("margin", [Probe("", 1, close_trace=False, score_end=True)]),
        ("entropy", [Probe("", 1, top_logprobs=20)]),
        ("utility(max_tokens=9)", [Probe(max_tokens=9, top_logprobs=20)]),
        ("redundancy", [Probe()]),
        ("cusum", []),
        ("budget", []),
        ("never", []),
    ],
)
def test_a_rehearsed_policy_shows_what_it_asks(policy: str, expected: list[Probe]) -> None:
    """Every kind of probe that it sends to an engine, found without one."""
    assert set(expected) == set(probes_of(parse(policy)))


def test_the_longest_probe_stands_for_the_shorter() -> None:
    """Greedy probes with one inducer are one another's beginnings; others are not."""
    probes = [Probe(max_tokens=1), Probe(max_tokens=20), Probe("other", 5), Probe(top_logprobs=20)]
    assert drop_covered_probes(probes) == [
        Probe(max_tokens=20),
        Probe("other", 5),
        Probe(top_logprobs=20),
    ]


def test_a_token_told_by_its_id_stands_alone() -> None:
    """It is no beginning of a longer probe's texts; nor are other ways to ask."""
    probes = [
        Probe(top_logprobs=20),
        Probe(max_tokens=1, top_logprobs=20),
        Probe(max_tokens=1, score_end=True),
    ]
    assert drop_covered_probes(probes) == probes


@pytest.mark.parametrize("policy", ["tilt", "budget(min=20)", "any_of(deer, tilt)"])
def test_what_leads_the_model_elsewhere_is_refused(policy: str) -> None:
    """Before an engine is asked for anything."""
    with pytest.raises(BadPolicy, match="no recording shows"):
        RecordingPlan.build([parse(policy)], [], [], {})


def test_nothing_asked_for_is_a_trial_answer_at_every_cue() -> None:
    """The plan that serves most policies."""
    plan = RecordingPlan.build([], [], [], {})
    assert (plan.needs, plan.probes) == ((Needs(cues=True),), (Probe(),))


def test_a_plan_holds_all_that_is_asked_for_once() -> None:
    """Needs stay apart, since a place depends on what else is looked for."""
    policies = [parse("deer"), parse("convergence"), parse("deer(threshold=0.9)")]
    plan = RecordingPlan.build(
        policies, [parse_needs("interval=16")], [parse_probe("probe(max_tokens=50)")], {}
    )
    assert plan.needs == (
        Needs(cues=True),
        Needs(interval=64),
        Needs(interval=16),
    )
    assert plan.probes == (Probe(max_tokens=50),)


@pytest.mark.parametrize(
    "written", ["cue", "interval", "cues=5", "interval=x(", "interval=os.getcwd()", ""]
)
def test_a_place_that_is_none(written: str) -> None:
    """Refused with what would be one; nothing is evaluated."""
    with pytest.raises(BadPlan):
        parse_needs(written)


@pytest.mark.parametrize(
    "written",
    ["probe", "stop(reason='x')", "probe(20)", "probe(colour=1)", "probe(max_tokens=f())"],
)
def test_a_probe_that_is_none(written: str) -> None:
    """Only a call of a probe's class with plain values is one."""
    with pytest.raises(BadPlan):
        parse_probe(written)
