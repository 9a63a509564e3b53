"""``with_patience``: policies scale by a client's effort, or are documented not to."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import adjourn
from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.never import Never
from adjourn.policies.parallel.early_consistency import EarlyConsistency
from adjourn.policies.patience import scale_confidence, scale_count
from adjourn.policies.policy import Needs, Policy, SupportsPatience, scale_patience
from adjourn.policies.registry import available, parse
from adjourn.policies.sampling import SamplingPolicy
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from adjourn.policies.stopping.loop import Loop
from tests.policies.readiness_fixtures import make_classifier

FACTORS = st.floats(0.05, 20)
REFERENCE = Path(__file__).parents[2] / "docs" / "policies" / "reference.md"
WITHOUT_PATIENCE = {"never", "no-thinking", "loop", "tilt", "lynx"}
BUILT_IN = {name for name, kind in available().items() if kind.__module__.startswith("adjourn.")}


@dataclass(frozen=True)
class Patient:
    """A plug-in policy with the optional method."""

    steps: int
    name: ClassVar[str] = "patient"

    @property
    def needs(self) -> Needs:
        return Needs()

    def start(self) -> Never:
        return Never()

    def with_patience(self, factor: float) -> Patient:
        return replace(self, steps=round(self.steps * factor))


@dataclass(frozen=True)
class Indifferent:
    """A plug-in policy without the optional method."""

    name: ClassVar[str] = "indifferent"

    @property
    def needs(self) -> Needs:
        return Needs()

    def start(self) -> Never:
        return Never()


def make(name: str) -> Policy:
    """The policy with its default options."""
    text = f"{name}(loop)" if name.endswith("_of") else name
    return parse(text, readiness_probes={"": make_classifier()})


def documented_tables() -> list[set[str]]:
    """The policies in the tables of the reference's section on the effort: scaled, unchanged."""
    section = REFERENCE.read_text("utf-8").partition("\n## Effort\n")[2].partition("\n## ")[0]
    names: list[set[str]] = []
    for line in section.splitlines():
        if line.startswith("| policy |"):
            names.append(set())
        elif line.startswith("| "):
            names[-1] |= set(re.findall(r"`([\w-]+)`", line.split("|")[1]))
    return names


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_policy_scales_or_is_documented_not_to(name: str) -> None:
    """A new policy gets the method, or a reason in the reference."""
    scaled, unchanged = documented_tables()
    policy = make(name)
    assert isinstance(policy, SupportsPatience) == (name not in WITHOUT_PATIENCE)
    assert (name in unchanged) == (name in WITHOUT_PATIENCE)
    assert (name in scaled) == (
        name not in WITHOUT_PATIENCE and not isinstance(policy, SamplingPolicy)
    )


@pytest.mark.parametrize("name", sorted(BUILT_IN - WITHOUT_PATIENCE))
@given(factor=FACTORS)
def test_any_factor_gives_a_valid_policy(name: str, factor: float) -> None:
    """It starts, and needs nothing that the engine was not asked for."""
    policy = make(name)
    scaled = scale_patience(policy, factor)
    assert type(scaled) is type(policy)
    assert scaled.needs == policy.needs
    scaled.start()


@pytest.mark.parametrize(
    ("specification", "factor", "expected"),
    [
        ("deer(threshold=0.5)", 2, "deer(threshold=0.75)"),
        ("deer(threshold=0.5)", 0.25, "deer(threshold=0.25)"),
        ("deer-pro(threshold=0.5, alpha=0.5)", 4, "deer-pro(threshold=0.875, alpha=0.5)"),
        ("learned(threshold=0.5, cues=0.3)", 2, "learned(threshold=0.75, cues=0.3)"),
        ("learned(threshold=1.0)", 0.5, "learned(threshold=1.0)"),
        ("convergence(window=3)", 2, "convergence(window=6, every=64)"),
        ("convergence(effort='max')", 0.5, "convergence(effort='max', window=2, every=32)"),
        ("convergence(window=30)", 4, "convergence(window=30, every=64)"),
        ("redundancy(confidence=0.5)", 2, "redundancy(confidence=0.75, min_steps=20)"),
        ("utility", 2, "utility(patience=6)"),
        ("utility", 0.25, "utility(patience=1)"),
        ("entropy(delta=0.001)", 2, "entropy(delta=0.0005)"),
        ("margin(threshold=0.5)", 2, "margin(threshold=0.25)"),
        ("margin(threshold=0)", 0.5, "margin(threshold=0.0)"),
        ("cusum(threshold=8)", 0.5, "cusum(threshold=4.0)"),
        ("deviation(threshold=1.5)", 2, "deviation(threshold=2.0)"),
        ("deviation(threshold=0.5)", 2, "deviation(threshold=0.5)"),
        ("first-try(easy=1, hard=3)", 2, "first-try(easy=2, hard=6)"),
        ("first-try(easy=1, hard=3)", 0.5, "first-try(easy=1, hard=2)"),
        ("budget(max=1000)", 0.5, "budget(max=500)"),
        ("budget(max=1)", 0.25, "budget(max=1)"),
        ("budget(max=1000, min=800)", 0.5, "budget(max=500, min=500)"),
        ("any_of(loop, budget(max=8))", 2, "any_of(loop, budget(max=16))"),
        ("all_of(any_of(utility), tilt)", 2, "all_of(any_of(utility(patience=6)), tilt)"),
        (
            "early-consistency(any_of(budget(max=8), loop), window=3)",
            2,
            "early-consistency(any_of(budget(max=16), loop), window=3)",
        ),
        ("first-finish", 2, "first-finish"),
    ],
)
def test_the_option_that_scales(specification: str, factor: float, expected: str) -> None:
    """Twice the factor waits twice as long, in the option that this means for the policy."""
    assert scale_patience(parse(specification), factor) == parse(expected)


@pytest.mark.parametrize("name", sorted(WITHOUT_PATIENCE))
def test_a_policy_without_the_method_is_unchanged(name: str) -> None:
    """So is a member of a composition."""
    policy = make(name)
    assert scale_patience(policy, 2) is policy
    assert scale_patience(AnyOf((policy, Budget(max=8))), 2) == AnyOf((policy, Budget(max=16)))


def test_a_plugin_with_the_method_is_scaled() -> None:
    """Alone, in a composition, and as the policy of a trace."""
    assert scale_patience(Patient(4), 0.5) == Patient(2)
    assert scale_patience(AllOf((Patient(4), Loop())), 0.5) == AllOf((Patient(2), Loop()))
    traces = EarlyConsistency((AnyOf((Patient(4),)),), window=3)
    assert scale_patience(traces, 0.5) == replace(traces, policies=(AnyOf((Patient(2),)),))


def test_a_plugin_without_the_method_is_left_alone() -> None:
    """It is the same object, inside a composition too."""
    policy = Indifferent()
    assert scale_patience(policy, 2) is policy
    scaled: Any = scale_patience(AnyOf((policy, Patient(2))), 2)
    assert scaled.policies[0] is policy


def test_a_factor_of_one_changes_nothing() -> None:
    """The method is not called, so the operator's options stay exactly as they are."""
    policy = Convergence(effort="low")
    assert scale_patience(policy, 1) is policy


def test_the_plugin_api_has_it() -> None:
    """A policy that wraps other policies needs it too."""
    assert adjourn.scale_patience is scale_patience
    assert adjourn.SupportsPatience is SupportsPatience


@given(st.floats(0.001, 1), FACTORS, FACTORS)
@example(1 - 2**-53, 16, 20)
def test_a_confidence_scales_in_order(threshold: float, one: float, other: float) -> None:
    """More patience never lowers it. It is at least half, and below 1 unless it was 1."""
    low, high = (scale_confidence(threshold, factor) for factor in sorted((one, other)))
    assert threshold / 2 <= low <= high <= 1
    assert (high == 1) == (threshold == 1)


@given(st.integers(1, 1000), FACTORS, FACTORS)
def test_a_count_scales_in_order(count: int, one: float, other: float) -> None:
    """More patience never lowers it, and it stays at least its minimum."""
    low, high = (scale_count(count, factor, 2) for factor in sorted((one, other)))
    assert 2 <= low <= high
