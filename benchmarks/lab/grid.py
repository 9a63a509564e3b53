"""Expand a grid of policies: ``deer(threshold=0.9..0.99)``, ``convergence(window={2,3,5})``.

``{a,b,c}`` expands to each alternative, ``a..b`` to at most ten evenly spaced numbers from a to b,
and several of them to all combinations.
"""

from __future__ import annotations

import re
from itertools import product

from adjourn.policies.registry import BadPolicy

__all__ = ["MAX_POLICIES", "expand"]

MAX_POLICIES = 10_000
"""Limit of one grid."""
_MAX_RANGE_STEPS = 9
_NUMBER = r"-?(?:\d+\.\d+|\d+|\.\d+)"
_RANGE = re.compile(rf"(?<![\w.])({_NUMBER})\.\.({_NUMBER})(?![\w.])")
_ALTERNATIVES = re.compile(r"\{([^{}]*)\}|" + _RANGE.pattern)


def expand(specification: str) -> list[str]:
    """The policies of a grid, in its order, without duplicates. Raises BadPolicy."""
    parts: list[list[str]] = []
    end = 0
    for match in _ALTERNATIVES.finditer(specification):
        parts += [[specification[end : match.start()]], _expand_match(match)]
        end = match.end()
    parts.append([specification[end:]])
    count = 1
    for part in parts:
        count *= len(part)
    if count > MAX_POLICIES:
        raise BadPolicy(f"{specification!r} expands to {count} policies, more than {MAX_POLICIES}")
    return list(dict.fromkeys("".join(chosen) for chosen in product(*parts)))


def _expand_match(match: re.Match[str]) -> list[str]:
    if match[1] is not None:
        return [policy for part in match[1].split(",") for policy in expand(part.strip())]
    return _expand_range(match[2], match[3])


def _expand_range(low: str, high: str) -> list[str]:
    first, last = float(low), float(high)
    if last < first:
        raise BadPolicy(f"the range {low}..{high} goes down: write the smaller number first")
    integers = "." not in low + high
    steps = min(_MAX_RANGE_STEPS, int(last - first)) if integers else _MAX_RANGE_STEPS
    if not steps or first == last:
        return [low]
    numbers = [first + (last - first) * step / steps for step in range(steps + 1)]
    return [str(round(number)) if integers else f"{round(number, 6):g}" for number in numbers]
