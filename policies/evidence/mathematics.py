"""Decide whether two answers are equal by algebra, with math-verify if it is installed.

The only module of ``policies`` that uses more than the standard library (extra ``math``). The
library is loaded at first use, takes about 60 MB and may need seconds for one comparison. A caller
that must not wait runs ``python -P -m adjourn.policies.evidence.mathematics`` as a process of its
own: it prints ``ready``, then answers each line of JSON, ``[one, other]``, with ``true`` or
``false``.
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
"""Longer answers are prose and are not compared by algebra."""
_TIMEOUT_SECONDS = 2
_PLAIN_NUMBER = re.compile(r"-?\d+(?:/\d+)?")
_MATH_CHARS = re.compile(r"[\\^/=+*<>%(\d]")


@lru_cache(maxsize=1)
def math_verify_installed() -> bool:
    return find_spec("math_verify") is not None


def may_be_math_equal(one: str, other: str) -> bool:
    """Whether two answers with different canonical forms may be equal by algebra. Fast."""
    texts = canonical(one), canonical(other)
    if not all(0 < len(text) <= MAX_ANSWER_CHARS and _MATH_CHARS.search(text) for text in texts):
        return False
    return not all(map(_PLAIN_NUMBER.fullmatch, texts))


@lru_cache(maxsize=4096)
def math_equal(one: str, other: str) -> bool:
    """Whether two answers are equal by canonical form or by algebra.

    May take seconds. The library's time limit works only in a process's main thread. An answer that
    the library cannot read equals none.
    """
    if canonically_equal(one, other):
        return True
    if not may_be_math_equal(one, other) or not math_verify_installed():
        return False
    from math_verify import parse, verify

    try:
        first, second = (
            parse(f"${text}$", parsing_timeout=_TIMEOUT_SECONDS) for text in (one, other)
        )
        # `verify` treats its arguments differently (truth, attempt): either order will do.
        return any(
            verify(a, b, timeout_seconds=_TIMEOUT_SECONDS)
            for a, b in ((first, second), (second, first))
        )
    except Exception:  # the library raises many kinds of errors
        return False


def _serve() -> None:
    math_equal("x^2", "x*x")  # loads the library
    print("ready", flush=True)
    for line in sys.stdin:
        one, other = json.loads(line)
        print(json.dumps(math_equal(one, other)), flush=True)


if __name__ == "__main__":
    _serve()
