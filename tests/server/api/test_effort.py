"""The effort that a client asks for changes the default policy's patience, or limits its tokens."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.never import Never
from adjourn.policies.parallel.first_finish import FirstFinish
from adjourn.policies.policy import Needs, Policy
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.loop import Loop
from adjourn.server.api.effort import PATIENCE_BY_EFFORT, apply_effort, read_effort
from adjourn.server.api.request import parse_chat
from adjourn.server.config import Settings

LEVELS = st.sampled_from(sorted(PATIENCE_BY_EFFORT))
USER = {"role": "user", "content": "How many?"}


@dataclass(frozen=True)
class BrokenPatience:
    """A plug-in policy whose ``with_patience`` raises."""

    name: ClassVar[str] = "broken-patience"

    @property
    def needs(self) -> Needs:
        return Needs()

    def start(self) -> Never:
        return Never()

    def with_patience(self, factor: float) -> Policy:
        raise ValueError(factor)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, None)),
        ({"reasoning_effort": "low"}, ("low", None)),
        ({"reasoning_effort": "none"}, (None, None)),
        ({"reasoning_effort": 3}, (None, None)),
        ({"reasoning": {"effort": "high"}}, ("high", None)),
        ({"reasoning": {"max_tokens": 900}}, (None, 900)),
        ({"reasoning": "much"}, (None, None)),
        ({"output_config": {"effort": "max"}}, ("max", None)),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, (None, 2000)),
        ({"thinking_token_budget": 50}, (None, 50)),
        ({"thinking_token_budget": -1}, (None, None)),
        ({"thinking_token_budget": True}, (None, None)),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high", "max_tokens": 7}}, ("low", 7)),
        ({"thinking_token_budget": 5, "thinking": {"budget_tokens": 9}}, (None, 5)),
    ],
)
def test_the_fields_that_are_read(
    fields: dict[str, Any], expected: tuple[str | None, int | None]
) -> None:
    """A level, a limit or both; other values are ignored."""
    assert read_effort(fields) == expected


@pytest.mark.parametrize(
    ("policy", "level", "expected"),
    [
        (Deer(threshold=0.9), "medium", Deer(threshold=0.9)),
        (Deer(threshold=0.5), "minimal", Deer(threshold=0.25)),
        (Budget(max=1000), "low", Budget(max=500)),
        (Budget(max=1000), "max", Budget(max=16000)),
        (Convergence(effort="mid"), "high", Convergence(window=6, every=64)),
        (Convergence(effort="mid"), "max", Convergence(window=16, every=64)),
        (Convergence(effort="high"), "minimal", Convergence(effort="high", window=2, every=64)),
        (Loop(), "low", Loop()),
        (AnyOf((Loop(), Budget(max=8))), "high", AnyOf((Loop(), Budget(max=16)))),
        (AllOf((Budget(max=8),)), "high", AllOf((Budget(max=16),))),
    ],
)
def test_a_level_scales_the_patience(policy: Policy, level: str, expected: Policy) -> None:
    """Medium changes nothing; each member of a composition is scaled."""
    assert apply_effort(policy, level, None) == expected


def test_twice_the_patience_halves_the_doubt_of_deer() -> None:
    """The doubt, 1 - threshold, is divided by the factor."""
    scaled = apply_effort(Deer(threshold=0.9), "high", None)
    assert isinstance(scaled, Deer)
    assert scaled.threshold == pytest.approx(0.95)


@given(st.floats(0.01, 0.99), LEVELS, LEVELS)
def test_more_effort_is_never_less_patience(threshold: float, one: str, other: str) -> None:
    """The levels are in order, and each gives a valid policy."""
    low, high = sorted((one, other), key=PATIENCE_BY_EFFORT.__getitem__)
    deers = [apply_effort(Deer(threshold=threshold), level, None) for level in (low, high)]
    budgets = [apply_effort(Budget(max=100), level, None) for level in (low, high)]
    assert isinstance(deers[0], Deer)
    assert isinstance(deers[1], Deer)
    assert deers[0].threshold <= deers[1].threshold + 1e-12
    assert isinstance(budgets[0], Budget)
    assert isinstance(budgets[1], Budget)
    assert budgets[0].max <= budgets[1].max


def test_a_policy_that_fails_to_scale_is_used_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """The error of a plug-in is logged and does not fail the request; the limit still applies."""
    with caplog.at_level(logging.ERROR, "adjourn.effort"):
        policy = apply_effort(BrokenPatience(), "low", 100)
    assert policy == apply_effort(BrokenPatience(), None, 100)
    assert "broken-patience" in caplog.text


@given(st.integers(1, 10**9))
def test_the_limit_is_never_exceeded(max_tokens: int) -> None:
    """The additional budget ends the trace there at the latest."""
    policy = apply_effort(Loop(), None, max_tokens)
    assert isinstance(policy, AnyOf)
    assert policy.policies[0] == Loop()
    budget = policy.policies[1]
    assert isinstance(budget, Budget)
    assert budget.max + budget.grace <= max(max_tokens, 1)


def test_a_sampling_policy_changes_the_policy_of_each_trace() -> None:
    """The level scales it, and the limit applies to each trace."""
    scaled = apply_effort(FirstFinish((Budget(max=100),)), "low", 1000)
    assert isinstance(scaled, FirstFinish)
    assert scaled.trace_policy == apply_effort(Budget(max=100), "low", 1000)
    assert apply_effort(FirstFinish(), "low", None) == FirstFinish()


@pytest.mark.parametrize(
    ("fields", "settings", "expected"),
    [
        ({"reasoning_effort": "low"}, {}, Budget(max=50)),
        ({"reasoning_effort": "low"}, {"dial": False}, Budget(max=100)),
        ({"reasoning_effort": "low", "adjourn": {"policy": "loop"}}, {}, Loop()),
        ({"reasoning_effort": "low", "model": "m:loop"}, {}, Loop()),
        ({"reasoning_effort": "low", "adjourn": {"policy": "off"}}, {}, None),
    ],
)
def test_the_effort_changes_the_default_policy_only(
    fields: dict[str, Any], settings: dict[str, Any], expected: Policy | None
) -> None:
    """A policy in the request takes precedence, and the operator can switch the effort off."""
    body = json.dumps({"model": "m", "messages": [USER], **fields}).encode()
    parsed = parse_chat(body, {}, Settings(**settings), Budget(max=100), {"m": None})
    assert parsed.policy == expected


def test_the_engine_gets_the_fields_too() -> None:
    """Chat templates with an effort, and the engine's own hard budget, keep working."""
    fields = {"reasoning_effort": "low", "thinking_token_budget": 50}
    body = json.dumps({"model": "m", "messages": [USER], **fields}).encode()
    parsed = parse_chat(body, {}, Settings(), Budget(), {"m": None})
    assert {name: json.loads(bytes(parsed.fields[name])) for name in fields} == fields
