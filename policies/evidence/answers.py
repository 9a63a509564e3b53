"""Read an answer out of what a model wrote, and tell whether two answers mean the same."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

__all__ = [
    "INDUCERS_BY_KIND",
    "AnswerClasses",
    "AnswerKind",
    "answer_confidence",
    "canonical",
    "canonically_equal",
    "count_answer_tokens",
    "extract_final_answer",
    "extract_trial_answer",
    "is_hesitant",
]

AnswerKind = Literal["boxed", "choice", "text", "code"]
"""What kind of answer is drawn out."""
INDUCERS_BY_KIND: Mapping[AnswerKind, str] = {
    "boxed": "answer",
    "choice": "answer-choice",
    "text": "answer-text",
    "code": "answer-code",
}
"""The dialect's text that draws an answer of each kind."""

_LETTER = re.compile(r"\s*[*(]*[A-Za-z]\b")
_HESITATION = re.compile(
    r"\b(?:wait|hmm+|but|however|alternatively|maybe|perhaps|not sure|unsure|let me)\b",
    re.IGNORECASE,
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")
_DECORATION = re.compile(r"\\[,;! ]|\\left(?![a-z])|\\right(?![a-z])|\*\*|[\s$]+")
_ANSWER_PHRASE = re.compile(r"\b(?:answer(?: is|:)|correct option is)[:\s]*", re.IGNORECASE)
_VARIABLE_PREFIX = re.compile(r"^[a-z]=(?=[-+.\d\\])")  # "x=5" names what it says
_CHOICE = re.compile(r"(?:option|choice)?\(?([a-j])[).:]?")
_FENCE = re.compile(r"^```\w*\n|\n?```$")
_GROUP = re.compile(r"(\(|\[|\\\{)([^()\[\]\"]*)(\)|\]|\\\})")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")


def extract_trial_answer(text: str, task: AnswerKind = "boxed") -> str:
    """The answer in ``drawn``, the text behind the task's inducer.

    One in a box runs to the brace that closes it, nested ones allowed; a choice is its letter,
    code runs to the fence behind it. A text, and what does not come to its end (the probe ran out
    of tokens), is the first line that is not empty.
    """
    return text[: _answer_end(text, task)].strip()


def answer_confidence(
    tokens: Sequence[str], logprobs: Sequence[float], task: AnswerKind = "boxed"
) -> float:
    """Geometric mean of the tokens' probabilities, over the answer's own tokens.

    The tokens are a greedy probe's, so each is the most probable one at its step (DEER, arXiv
    2504.15895, equation 2). 0.0 where there is no answer: a lone closing brace is certain of
    nothing.
    """
    count = count_answer_tokens(tokens, task)
    if not count or len(tokens) != len(logprobs):
        return 0.0
    return math.exp(sum(logprobs[:count]) / count)


def count_answer_tokens(tokens: Sequence[str], task: AnswerKind = "boxed") -> int:
    """How many of the tokens are the answer's own; 0 where there is none.

    One that only closes the answer counts: it says how sure the model is that it is complete.
    """
    drawn = "".join(tokens)
    if not extract_trial_answer(drawn, task):
        return 0
    end, seen = _answer_end(drawn, task), 0
    for count, token in enumerate(tokens):
        if seen > end:
            return count
        seen += len(token)
    return len(tokens)


def _answer_end(drawn: str, task: AnswerKind) -> int:
    if task == "code":
        fence = drawn.find("```")
        return len(drawn) if fence < 0 else fence
    if task == "choice" and (letter := _LETTER.match(drawn)):
        return letter.end()
    return _end_of_box(drawn) if task == "boxed" else _end_of_line(drawn)


def _end_of_box(drawn: str) -> int:
    depth = 1
    for index, character in enumerate(drawn):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return index
    return _end_of_line(drawn)


def _end_of_line(drawn: str) -> int:
    begin = len(drawn) - len(drawn.lstrip())
    line = drawn.find("\n", begin)
    return len(drawn) if line < 0 else line


def is_hesitant(text: str) -> bool:
    """Whether the model goes on doubting inside its trial answer ("no" in "know" is no doubt)."""
    return _HESITATION.search(text) is not None


def extract_final_answer(text: str) -> str:
    """What an answer's text says: the content of its last box, else what its last "answer is",
    "answer:" or "correct option is" names, else all of it."""
    _, box, boxed = text.rpartition("\\boxed{")
    if box:
        return extract_trial_answer(boxed)
    rest = ""
    for named in _ANSWER_PHRASE.finditer(text):
        rest = text[named.end() :]
    return (rest.partition("\n")[0] or text).strip()


def canonically_equal(one: str, other: str) -> bool:
    """Whether two answers plainly mean the same."""
    return canonical(one) == canonical(other)


@lru_cache(maxsize=4096)
def canonical(answer: str) -> str:
    """The one spelling of what an answer means: a number in lowest terms, a choice as its letter,
    JSON with its keys in order, a tuple or set by its parts, all else as text without its dress.

    Linear in the answer's length and without side effects; what is the same only by algebra is
    ``adjourn.policies.evidence.mathematics``'s.
    """
    text = _DECORATION.sub("", _TEXT_COMMAND.sub(r"\1", answer)).rstrip(".").casefold()
    text = _VARIABLE_PREFIX.sub("", text.replace("\\%", "%"))
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    return _canonical_group(text) or _canonical_json(answer) or _canonical_number(text)


def _canonical_json(answer: str) -> str | None:
    """Of an object or a list, where the answer is one; a fence around it is no part of it."""
    text = _FENCE.sub("", answer.strip()).strip()
    if text[:1] not in ("{", "["):
        return None
    try:
        document = json.loads(text, parse_float=_int_if_whole)
        return json.dumps(document, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None


def _int_if_whole(written: str) -> int | float:
    number = float(written)
    return int(number) if number.is_integer() else number


def _canonical_group(text: str) -> str | None:
    """Of a tuple, interval or set: each part by its meaning, those of a set in order."""
    found = _GROUP.fullmatch(text)
    if found is None or "," not in found[2]:
        return None
    opening, inside, closing = found.groups()
    parts = [_canonical_number(part) for part in inside.split(",")]
    if opening == "\\{":
        parts = sorted(set(parts))
    return opening + ",".join(parts) + closing


def _canonical_number(text: str) -> str:
    """A number in lowest terms; any other text as it is."""
    spelled = text
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        spelled = f"{fraction[1]}{fraction[2]}/{fraction[3]}".replace("--", "")
    spelled = re.sub(r"(?<=\d),(?=\d{3}\b)", "", spelled)
    if len(spelled) > 64:  # an exponent or a digit string made to be slow
        return text
    if re.fullmatch(r"[-+]?\d+(?:\.\d*)?(?:/\d+)?|[-+]?\.\d+", spelled) is None:
        return text
    try:
        return str(Fraction(spelled))
    except (ValueError, ZeroDivisionError):
        return text


class AnswerClasses:
    """Answers of one request by what they mean: each class has a number, in order of appearance.

    ``find`` knows what is plainly the same; who can tell more asks about ``candidates`` before
    ``add`` makes a class of its own.
    """

    def __init__(self) -> None:
        self._labels: dict[str, int] = {}
        self._representatives: list[str] = []

    def find(self, answer: str) -> int | None:
        return self._labels.get(canonical(answer))

    @property
    def representatives(self) -> list[str]:
        """The first answer of each class, by its number."""
        return list(self._representatives)

    def add(self, answer: str, same_as: int | None = None) -> int:
        """The answer's class: that which it is ``like``, else a known or a new one."""
        key = canonical(answer)
        if same_as is None:
            same_as = self._labels.get(key, len(self._representatives))
        if same_as == len(self._representatives):
            self._representatives.append(answer)
        return self._labels.setdefault(key, same_as)
