"""Whether two answers are the same by algebra: math-verify's judgement, where it is installed.

The one place of this room that is not the standard library's alone: equivalence of LaTeX is a
library's business (``pip install adjourn[math]``). It is loaded when it is first needed, takes
some 60 MB and may take its time, so whoever must not wait runs
``python -m adjourn.policies.evidence.mathematics``
beside itself: it says when it is ``ready``, then to each line of JSON, ``[one, other]``, ``true``
or ``false``.
"""

from __future__ import annotations

import json
import re
import sys
from functools import lru_cache
from importlib.util import find_spec

from adjourn.policies.evidence.answers import canonical, canonically_equal

__all__ = ["MAX_ANSWER_CHARS", "math_equal", "math_verify_installed", "may_be_math_equal"]

MAX_ANSWER_CHARS = 200
"""Characters of an answer that is looked at; a longer one is prose."""
_TIMEOUT_SECONDS = 2
_PLAIN_NUMBER = re.compile(r"-?\d+(?:/\d+)?")
_MATH_CHARS = re.compile(r"[\\^/=+*<>%(\d]")


@lru_cache(maxsize=1)
def math_verify_installed() -> bool:
    return find_spec("math_verify") is not None


def may_be_math_equal(one: str, other: str) -> bool:
    """Whether two answers that are not plainly the same may be so by algebra."""
    texts = canonical(one), canonical(other)
    if not all(0 < len(text) <= MAX_ANSWER_CHARS and _MATH_CHARS.search(text) for text in texts):
        return False
    return not all(map(_PLAIN_NUMBER.fullmatch, texts))


@lru_cache(maxsize=4096)
def math_equal(one: str, other: str) -> bool:
    """Whether two answers mean the same, plainly or by algebra. May take seconds, and only a
    process's main thread can give it up then."""
    if canonically_equal(one, other):
        return True
    if not may_be_math_equal(one, other) or not math_verify_installed():
        return False
    from math_verify import parse, verify

    try:
        gold, drawn = (
            parse(f"${text}$", parsing_timeout=_TIMEOUT_SECONDS) for text in (one, other)
        )
        # It takes its first for the truth and the second for an attempt: either way will do.
        return any(
            verify(a, b, timeout_seconds=_TIMEOUT_SECONDS)
            for a, b in ((gold, drawn), (drawn, gold))
        )
    except Exception:  # of whatever kind: what it can't read is not equal
        return False


def _serve() -> None:
    math_equal("x^2", "x*x")  # loads it
    print("ready", flush=True)
    for line in sys.stdin:
        one, other = json.loads(line)
        print(json.dumps(math_equal(one, other)), flush=True)


if __name__ == "__main__":
    _serve()
