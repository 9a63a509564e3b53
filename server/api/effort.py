"""Apply the effort that a client asks for to a policy.

A level (``reasoning_effort``) is a factor for the policy's patience: ``medium`` leaves the policy
as the operator set it, ``high`` doubles its patience. The policy's optional method
``with_patience`` decides what that means. A number of tokens is a limit: a ``budget`` in addition
to the policy.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from adjourn.policies.compose import AnyOf
from adjourn.policies.policy import Policy, scale_patience
from adjourn.policies.sampling import SamplingPolicy
from adjourn.policies.stopping.budget import Budget

__all__ = ["PATIENCE_BY_EFFORT", "apply_effort", "read_effort"]

log = logging.getLogger("adjourn.effort")

PATIENCE_BY_EFFORT = {
    "minimal": 0.25,
    "low": 0.5,
    "medium": 1.0,
    "high": 2.0,
    "xhigh": 4.0,
    "max": 16.0,
}
_MAX_GRACE = 64


def read_effort(fields: dict[str, Any]) -> tuple[str | None, int | None]:
    """(level, most tokens of the trace) of a request, the more specific field first. A value that
    is neither is ignored here; the engine gets the fields too and may refuse them."""
    reasoning, thinking = _get_object(fields, "reasoning"), _get_object(fields, "thinking")
    output = _get_object(fields, "output_config")
    level = _first_of_type(
        str, fields.get("reasoning_effort"), reasoning.get("effort"), output.get("effort")
    )
    max_tokens = _first_of_type(
        int,
        fields.get("thinking_token_budget"),
        thinking.get("budget_tokens"),
        reasoning.get("max_tokens"),
    )
    return (
        level if level in PATIENCE_BY_EFFORT else None,
        max_tokens if max_tokens and max_tokens > 0 else None,
    )


def _get_object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _first_of_type(kind: type, *values: Any) -> Any:
    return next((value for value in values if type(value) is kind), None)


def apply_effort(policy: Policy, effort: str | None, max_tokens: int | None) -> Policy:
    """The policy at this level, one of ``PATIENCE_BY_EFFORT``, and with this limit in tokens of the
    trace. A policy that fails to scale is used as it is."""
    if effort is not None:
        try:
            policy = scale_patience(policy, PATIENCE_BY_EFFORT[effort])
        except Exception:
            log.exception("policy %r cannot follow the effort %r", policy.name, effort)
    return policy if max_tokens is None else _limit(policy, max_tokens)


def _limit(policy: Policy, max_tokens: int) -> Policy:
    """End each trace after ``max_tokens``, at a sentence end before it if there is one."""
    if isinstance(policy, SamplingPolicy):
        return replace(policy, policies=(_limit(policy.trace_policy, max_tokens),))
    grace = min(_MAX_GRACE, max_tokens // 4)
    return AnyOf((policy, Budget(max=max(max_tokens - grace, 1), grace=grace)))
