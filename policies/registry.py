"""Find policies by name, and parse the specification of a policy.

Every policy, built-in or not, is an entry point of the group ``adjourn.policies``, so a third party
adds one with a line in its own ``pyproject.toml``. A specification is a name, a call with options,
or a composition: ``deer``, ``deer(threshold=0.9)``, ``any_of(deer, budget(max=4000))``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from adjourn.policies.evidence.readiness import ReadinessClassifier
from adjourn.policies.policy import Policy

__all__ = [
    "ENTRY_POINT_GROUP",
    "MAX_SPECIFICATION_LENGTH",
    "NO_READINESS_PROBES",
    "BadPolicy",
    "ReadinessProbes",
    "available",
    "build",
    "parse",
]

ENTRY_POINT_GROUP = "adjourn.policies"

# A specification is parsed as a Python expression, whose names have no hyphens. Quoted text (the
# first group) is left as it is.
_HYPHEN = re.compile(r"""('[^']*'|"[^"]*")|(?<=[a-z])-(?=[a-z])""")
MAX_SPECIFICATION_LENGTH = 1000
"""Longest specification, in characters."""
_MAX_INT = 2**31

ReadinessProbes = Mapping[str, ReadinessClassifier]
"""The classifiers that the driver has loaded, by the name that the option ``probe`` of ``lynx`` may
have; "" is the one for a policy that names none."""
NO_READINESS_PROBES: ReadinessProbes = MappingProxyType({})


class BadPolicy(ValueError):
    """An unknown policy or option, or an invalid value; the message says what is valid."""


@cache
def available() -> dict[str, type]:
    """Every installed policy by its name."""
    return {point.name: point.load() for point in sorted(entry_points(group=ENTRY_POINT_GROUP))}


def parse(
    specification: str,
    options: Mapping[str, Any] | None = None,
    readiness_probes: ReadinessProbes = NO_READINESS_PROBES,
) -> Policy:
    """The policy that ``specification`` describes; ``options`` override the ones written in it.

    Raises BadPolicy with a message that says what is valid.
    """
    if len(specification) > MAX_SPECIFICATION_LENGTH:
        raise BadPolicy(
            f"cannot read a policy of more than {MAX_SPECIFICATION_LENGTH} characters: "
            f"{_examples()}"
        )
    text = _HYPHEN.sub(lambda match: match.group(1) or "_", specification.strip())
    try:
        return _build_from_ast(ast.parse(text, mode="eval").body, options or {}, readiness_probes)
    except BadPolicy:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BadPolicy(f"cannot read policy {specification!r}: {_examples()}") from None


def build(
    name: str,
    options: Mapping[str, Any],
    members: tuple[Policy, ...] = (),
    readiness_probes: ReadinessProbes = NO_READINESS_PROBES,
) -> Policy:
    """The policy ``name`` with these options and, for a composition or a sampling policy, these
    members. Raises BadPolicy."""
    kind = available().get(name) or available().get(name.replace("_", "-"))
    if kind is None:
        known = ", ".join(available())
        raise BadPolicy(f"unknown policy {name!r}: choose one of {known}")
    hints = get_type_hints(kind)
    valid = [field.name for field in fields(kind) if field.name != "policies"]
    for option, value in options.items():
        if option not in valid:
            choice = f"its options are {', '.join(valid)}" if valid else "it has no options"
            raise BadPolicy(f"policy {name!r} has no option {option!r}: {choice}")
        if not _matches_hint(value, hints[option]):
            expected = _describe_hint(hints[option])
            raise BadPolicy(f"option {option!r} of policy {name!r} must be {expected}")
    classifiers = {
        option: _find_readiness_probe(name, option, options.get(option, ""), readiness_probes)
        for option in valid
        if hints[option] is ReadinessClassifier
    }
    takes_members = any(field.name == "policies" for field in fields(kind))
    if members and not takes_members:
        raise BadPolicy(f"policy {name!r} takes options by name only")
    try:
        policy: Policy = kind(*((members,) if takes_members else ()), **{**options, **classifiers})
    except (ValueError, TypeError) as error:
        raise BadPolicy(f"policy {name!r}: {error}") from None
    return policy


def _find_readiness_probe(
    name: str, option: str, value: str, probes: ReadinessProbes
) -> ReadinessClassifier:
    try:
        return probes[value]
    except KeyError:
        known = ", ".join(filter(None, probes)) or "none is configured"
        expected = f"must name a probe that `adjourn learn` made: {known}"
        raise BadPolicy(f"option {option!r} of policy {name!r} {expected}") from None


def _build_from_ast(tree: ast.expr, options: Mapping[str, Any], probes: ReadinessProbes) -> Policy:
    match tree:
        case ast.Name(id=name):
            return build(name, options, readiness_probes=probes)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            written = {word.arg: _literal(word.value) for word in keywords if word.arg}
            if len(written) < len(keywords):  # "**options"
                raise BadPolicy(f"cannot read the options of policy {name!r}: {_examples()}")
            members = tuple(_build_from_ast(member, {}, probes) for member in args)
            return build(name, {**written, **options}, members, probes)
    raise BadPolicy(f"cannot read policy {ast.unparse(tree)!r}: {_examples()}")


def _literal(tree: ast.expr) -> Any:
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError):
        raise BadPolicy(f"{ast.unparse(tree)!r} is not a number or a quoted string") from None


def _matches_hint(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(hint, UnionType):
        return any(_matches_hint(value, part) for part in get_args(hint))
    if hint is ReadinessClassifier:
        return isinstance(value, str)
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int) and abs(value) > _MAX_INT:
        return False  # no option needs such a number, and float() may overflow
    return isinstance(value, (int, float) if hint is float else hint)


def _describe_hint(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if isinstance(hint, UnionType):
        return " or ".join(_describe_hint(part) for part in get_args(hint))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"} | {
        ReadinessClassifier: "the name of a probe"
    }
    return "null" if hint is NoneType else names.get(hint, str(hint))


def _examples() -> str:
    return "write e.g. 'deer', 'deer(threshold=0.9)' or 'any_of(deer, loop)'"
