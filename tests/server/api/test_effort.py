"""How long to think, as clients say it already."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.parallel.first_finish import FirstFinish
from adjourn.policies.policy import Policy
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.loop import Loop
from adjourn.server.api.effort import PATIENCE_BY_EFFORT, apply_effort, read_effort
from adjourn.server.api.request import parse_chat
from adjourn.server.config import Settings

LEVELS = st.sampled_from(sorted(PATIENCE_BY_EFFORT))
USER = {"role": "user", "content": "How many?"}


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
def test_what_is_read(fields: dict[str, Any], expected: tuple[str | None, int | None]) -> None:
    """A level, a ceiling or both; what is neither says nothing."""
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
def test_a_level(policy: Policy, level: str, expected: Policy) -> None:
    """Medium changes nothing; members of a composition are each turned."""
    assert apply_effort(policy, level, None) == expected


def test_deer_doubts_half_as_much_at_twice_the_patience() -> None:
    """What is left of certainty is divided."""
    turned_up = apply_effort(Deer(threshold=0.9), "high", None)
    assert isinstance(turned_up, Deer)
    assert turned_up.threshold == pytest.approx(0.95)


@given(st.floats(0.01, 0.99), LEVELS, LEVELS)
def test_more_effort_is_never_less_patience(threshold: float, one: str, other: str) -> None:
    """The levels are in order, and each makes a policy that is valid."""
    low, high = sorted((one, other), key=PATIENCE_BY_EFFORT.__getitem__)
    deers = [apply_effort(Deer(threshold=threshold), level, None) for level in (low, high)]
    budgets = [apply_effort(Budget(max=100), level, None) for level in (low, high)]
    assert isinstance(deers[0], Deer)
    assert isinstance(deers[1], Deer)
    assert deers[0].threshold <= deers[1].threshold + 1e-12
    assert isinstance(budgets[0], Budget)
    assert isinstance(budgets[1], Budget)
    assert budgets[0].max <= budgets[1].max


@given(st.integers(1, 10**9))
def test_a_ceiling_is_never_passed(ceiling: int) -> None:
    """The budget beside the policy ends at the latest there."""
    policy = apply_effort(Loop(), None, ceiling)
    assert isinstance(policy, AnyOf)
    assert policy.policies[0] == Loop()
    budget = policy.policies[1]
    assert isinstance(budget, Budget)
    assert budget.max + budget.grace <= max(ceiling, 1)


def test_it_turns_what_each_of_several_traces_runs() -> None:
    """The patience is that of its policy, and the ceiling that of each trace."""
    turned = apply_effort(FirstFinish((Budget(max=100),)), "low", 1000)
    assert isinstance(turned, FirstFinish)
    assert turned.trace_policy == apply_effort(Budget(max=100), "low", 1000)
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
def test_explicit_settings_win(
    fields: dict[str, Any], settings: dict[str, Any], expected: Policy | None
) -> None:
    """The dial turns the default policy and no other; the operator may switch it off."""
    body = json.dumps({"model": "m", "messages": [USER], **fields}).encode()
    asked = parse_chat(body, {}, Settings(**settings), Budget(max=100), {"m": None})
    assert asked.policy == expected


def test_the_engine_gets_the_dial_too() -> None:
    """Templates that know an effort, and the engine's own hard budget, go on working."""
    fields = {"reasoning_effort": "low", "thinking_token_budget": 50}
    body = json.dumps({"model": "m", "messages": [USER], **fields}).encode()
    asked = parse_chat(body, {}, Settings(), Budget(), {"m": None})
    assert {name: json.loads(bytes(asked.fields[name])) for name in fields} == fields
