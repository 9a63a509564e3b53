"""Recording plans from policies, checkpoints and probes."""

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
def test_simulation_finds_the_probes_of_a_policy(policy: str, expected: list[Probe]) -> None:
    """Every kind of probe that it sends, without an engine."""
    assert set(expected) == set(probes_of(parse(policy)))


def test_a_longer_probe_covers_a_shorter_one() -> None:
    """Only if they differ in nothing but ``max_tokens``."""
    probes = [Probe(max_tokens=1), Probe(max_tokens=20), Probe("other", 5), Probe(top_logprobs=20)]
    assert drop_covered_probes(probes) == [
        Probe(max_tokens=20),
        Probe("other", 5),
        Probe(top_logprobs=20),
    ]


def test_a_probe_that_returns_token_ids_is_not_covered() -> None:
    """A longer probe returns texts; a score is not part of any other probe's result."""
    probes = [
        Probe(top_logprobs=20),
        Probe(max_tokens=1, top_logprobs=20),
        Probe(max_tokens=1, score_end=True),
    ]
    assert drop_covered_probes(probes) == probes


@pytest.mark.parametrize("policy", ["tilt", "budget(min=20)", "any_of(deer, tilt)"])
def test_a_policy_that_changes_the_reasoning_is_refused(policy: str) -> None:
    """When the plan is built, before any request."""
    with pytest.raises(BadPolicy, match="no recording shows"):
        RecordingPlan.build([parse(policy)], [], [], {})


def test_the_default_plan_is_a_trial_answer_at_every_cue() -> None:
    """It is enough for most policies."""
    plan = RecordingPlan.build([], [], [], {})
    assert (plan.needs, plan.probes) == ((Needs(cues=True),), (Probe(),))


def test_a_plan_has_no_duplicates() -> None:
    """Needs are not merged, since the checkpoints of one kind depend on the other kinds."""
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
    "text", ["cue", "interval", "cues=5", "interval=x(", "interval=os.getcwd()", ""]
)
def test_bad_checkpoints_are_refused(text: str) -> None:
    """No expression in the text is evaluated."""
    with pytest.raises(BadPlan):
        parse_needs(text)


@pytest.mark.parametrize(
    "text",
    ["probe", "stop(reason='x')", "probe(20)", "probe(colour=1)", "probe(max_tokens=f())"],
)
def test_a_bad_probe_is_refused(text: str) -> None:
    """A probe is a call of `probe` with literals as keyword arguments."""
    with pytest.raises(BadPlan):
        parse_probe(text)
