"""Select the policy and the model of a request, from its body, its headers and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from adjourn.policies.evidence.readiness import ReadinessClassifier
from adjourn.policies.policy import Policy
from adjourn.policies.registry import MAX_SPECIFICATION_LENGTH, BadPolicy, parse
from adjourn.server.api.effort import apply_effort, read_effort
from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest

__all__ = ["Selection", "select_policy"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The engine's model id, the policy (None if it is off), and whether the client chose it."""

    model: str
    policy: Policy | None
    is_explicit: bool


def select_policy(
    fields: dict[str, Any],
    headers: Mapping[str, str],
    settings: Settings,
    default: Policy | None,
    models: Mapping[str, Any],
) -> Selection:
    """Take the policy of ``adjourn.policy``, else of the header, else of the model alias, else
    ``default``. The client's effort adjusts the default policy only.

    ``fields``: the decoded fields of the body. ``models``: ids that the engine serves.
    Raises BadRequest for an unknown policy or option.
    """
    options = fields["adjourn"]
    model, alias_policy = _resolve_model(fields["model"] or "", settings, models)
    named = _read_policy_name(options) or headers.get("x-adjourn-policy") or alias_policy
    kept = {name: value for name, value in (options or {}).items() if name != "policy"}
    policy = _make_policy(named, kept, settings, default)
    is_explicit = options is not None or named is not None
    if policy is not None and settings.dial and not is_explicit:
        policy = apply_effort(policy, *read_effort(fields))
    return Selection(model, policy, is_explicit)


def _read_policy_name(options: Mapping[str, Any] | None) -> str | None:
    name = (options or {}).get("policy")
    if name is not None and not isinstance(name, str):
        raise BadRequest("adjourn.policy must be a string", param="adjourn.policy")
    return name


def _resolve_model(
    name: str, settings: Settings, models: Mapping[str, Any]
) -> tuple[str, str | None]:
    """(the engine's model id, the policy that an alias names or None). A request without a model
    means the engine's only model."""
    if not name:
        return next(iter(models)) if len(models) == 1 else "", None
    name = settings.aliases.get(name, name)
    # A model id may contain a colon, a policy specification never does.
    base, colon, policy = name.rpartition(":")
    base = settings.aliases.get(base, base)
    if colon and name not in models and (base in models or not models):
        return base, policy
    return name, None


def _make_policy(
    named: str | None, options: dict[str, Any], settings: Settings, default: Policy | None
) -> Policy | None:
    if named == "off":
        return None
    if named is None and not options:
        return default
    if named is None and settings.policy == "off":
        raise BadRequest("adjourn has options but names no policy", param="adjourn.policy")
    try:
        if options:
            return parse(named or settings.policy, options, settings.probes)
        return _parse_policy(named or settings.policy, tuple(settings.probes.items()))
    except BadPolicy as error:
        raise BadRequest(str(error), param="adjourn", code="bad_policy") from None


def _parse_policy(named: str, probes: tuple[tuple[str, ReadinessClassifier], ...]) -> Policy:
    if len(named) >= MAX_SPECIFICATION_LENGTH:
        return parse(
            named, readiness_probes=dict(probes)
        )  # nearly always refused: not worth caching
    return _parse_policy_cached(named, probes)


@lru_cache(maxsize=256)
def _parse_policy_cached(named: str, probes: tuple[tuple[str, ReadinessClassifier], ...]) -> Policy:
    return parse(named, readiness_probes=dict(probes))
