"""One dial for how long to think: what clients already send, turned into a policy's options.

A level is a patience: medium leaves the policy as the operator set it, twice the patience halves
what ``deer`` still doubts and doubles what ``budget`` and ``convergence`` wait for. A number of
tokens is a ceiling: a ``budget`` beside the policy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.policy import Policy
from adjourn.policies.sampling import SamplingPolicy
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from adjourn.policies.stopping.deer import Deer

__all__ = ["PATIENCE_BY_EFFORT", "apply_effort", "read_effort"]

PATIENCE_BY_EFFORT = {
    "minimal": 0.25,
    "low": 0.5,
    "medium": 1.0,
    "high": 2.0,
    "xhigh": 4.0,
    "max": 16.0,
}
_MAX_GRACE = 64
_MAX_WINDOW = 16


def read_effort(fields: dict[str, Any]) -> tuple[str | None, int | None]:
    """(level, ceiling) as a request's fields say it, the more particular field first; what is
    none of either is the engine's affair."""
    reasoning, thinking = _get_object(fields, "reasoning"), _get_object(fields, "thinking")
    output = _get_object(fields, "output_config")
    level = _first_of_type(
        str, fields.get("reasoning_effort"), reasoning.get("effort"), output.get("effort")
    )
    ceiling = _first_of_type(
        int,
        fields.get("thinking_token_budget"),
        thinking.get("budget_tokens"),
        reasoning.get("max_tokens"),
    )
    return (
        level if level in PATIENCE_BY_EFFORT else None,
        ceiling if ceiling and ceiling > 0 else None,
    )


def _get_object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _first_of_type(kind: type, *values: Any) -> Any:
    return next((value for value in values if type(value) is kind), None)


def apply_effort(policy: Policy, effort: str | None, ceiling: int | None) -> Policy:
    """The policy at this level and under this ceiling, in tokens of the trace."""
    if effort is not None and effort != "medium":
        policy = _scale_patience(policy, PATIENCE_BY_EFFORT[effort])
    if ceiling is None:
        return policy
    if isinstance(policy, SamplingPolicy):
        return replace(policy, policies=(apply_effort(policy.trace_policy, None, ceiling),))
    grace = min(_MAX_GRACE, ceiling // 4)
    return AnyOf((policy, Budget(max=max(ceiling - grace, 1), grace=grace)))


def _scale_patience(policy: Policy, patience: float) -> Policy:
    match policy:
        case SamplingPolicy(policies=(trace,)):
            return replace(policy, policies=(_scale_patience(trace, patience),))
        case AnyOf() | AllOf():
            return type(policy)(
                tuple(_scale_patience(member, patience) for member in policy.policies)
            )
        case Deer():
            doubt = (1 - policy.threshold) / patience
            return replace(policy, threshold=max(1 - doubt, policy.threshold / 2))
        case Convergence():
            window, every = policy.window_and_interval
            window = min(max(round(window * patience), 2), max(window, _MAX_WINDOW))
            return replace(policy, window=window, every=every)
        case Budget():
            return replace(policy, max=max(round(policy.max * patience), 1))
    return policy
