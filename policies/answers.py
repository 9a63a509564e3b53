"""Read a trial answer out of what a probe drew, and tell whether two answers are the same."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["confidence", "hesitant", "own_tokens", "same", "trial_answer"]

_HESITATION = re.compile(
    r"\b(?:wait|hmm+|but|however|alternatively|maybe|perhaps|not sure|unsure|let me)\b",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")
_DECORATION = re.compile(r"\\[,;! ]|[\s$]+")


def trial_answer(drawn: str) -> str:
    """The answer in ``drawn``, the text behind an inducer that ended in an open brace.

    It runs to the brace that closes it, nested ones allowed. Without one (the probe ran out of
    tokens, or the inducer opened none) it is the first line that is not empty.
    """
    return drawn[: _end(drawn)].strip()


def confidence(tokens: Sequence[str], logprobs: Sequence[float]) -> float:
    """Geometric mean of the tokens' probabilities, over the answer's own tokens.

    The tokens are a greedy probe's, so each is the most probable one at its step (DEER, arXiv
    2504.15895, equation 2). 0.0 where there is no answer: a lone closing brace is certain of
    nothing.
    """
    count = own_tokens(tokens)
    if not count or len(tokens) != len(logprobs):
        return 0.0
    return math.exp(sum(logprobs[:count]) / count)


def own_tokens(tokens: Sequence[str]) -> int:
    """How many of the tokens are the answer's own; 0 where there is none.

    One that only closes the answer counts: it says how sure the model is that it is complete.
    """
    drawn = "".join(tokens)
    if not trial_answer(drawn):
        return 0
    end, seen = _end(drawn), 0
    for count, token in enumerate(tokens):
        if seen > end:
            return count
        seen += len(token)
    return len(tokens)


def _end(drawn: str) -> int:
    """Where the answer ends: at the brace that closes it, else at the end of its line."""
    depth = 1
    for index, character in enumerate(drawn):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return index
    begin = len(drawn) - len(drawn.lstrip())
    line = drawn.find("\n", begin)
    return len(drawn) if line < 0 else line


def hesitant(text: str) -> bool:
    """Whether the model goes on doubting inside its trial answer ("no" in "know" is no doubt)."""
    return _HESITATION.search(text) is not None


def same(one: str, other: str) -> bool:
    """Whether two answers mean the same: as numbers where both are, else as normalised text."""
    a, b = _normal(one), _normal(other)
    if a == b:
        return True
    x, y = _number(a), _number(b)
    return x is not None and x == y


def _normal(answer: str) -> str:
    text = _DECORATION.sub("", _WRAPPED.sub(r"\1", answer))
    return text.rstrip(".").casefold()


def _number(text: str) -> Fraction | None:
    fraction = re.fullmatch(r"(-?)\\d?frac\{(-?\d+)\}\{(\d+)\}", text)
    if fraction:
        text = f"{fraction[1]}{fraction[2]}/{fraction[3]}".replace("--", "")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    if len(text) > 64:  # an exponent or a digit string made to be slow
        return None
    if re.fullmatch(r"[-+]?\d+(?:\.\d+)?(?:/\d+)?|[-+]?\.\d+", text) is None:
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
