"""Extract an answer from generated text, and decide whether two answers mean the same."""

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
"""The form of the answer that a probe asks for."""
INDUCERS_BY_KIND: Mapping[AnswerKind, str] = {
    "boxed": "answer",
    "choice": "answer-choice",
    "text": "answer-text",
    "code": "answer-code",
}
"""For each kind, the name of the dialect's inducer."""

_LETTER = re.compile(r"\s*[*(]*[A-Za-z]\b")
_HESITATION = re.compile(
    r"\b(?:wait|hmm+|but|however|alternatively|maybe|perhaps|not sure|unsure|let me)\b",
    re.IGNORECASE,
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")
_DECORATION = re.compile(r"\\[,;! ]|\\left(?![a-z])|\\right(?![a-z])|\*\*|[\s$]+")
_ANSWER_PHRASE = re.compile(r"\b(?:answer(?: is|:)|correct option is)[:\s]*", re.IGNORECASE)
_VARIABLE_PREFIX = re.compile(r"^[a-z]=(?=[-+.\d\\])")  # "x=5" means "5"
_CHOICE = re.compile(r"(?:option|choice)?\(?([a-j])[).:]?")
_FENCE = re.compile(r"^```\w*\n|\n?```$")
_GROUP = re.compile(r"(\(|\[|\\\{)([^()\[\]\"]*)(\)|\]|\\\})")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")


def extract_trial_answer(text: str, task: AnswerKind = "boxed") -> str:
    """The answer in ``text``, which the model wrote after the inducer of this kind.

    boxed: up to the brace that closes the box; braces may nest. choice: the letter. code: up to the
    closing fence. text, and every answer whose end is missing (the probe ran out of tokens): the
    first line that is not empty.
    """
    return text[: _answer_end(text, task)].strip()


def answer_confidence(
    tokens: Sequence[str], logprobs: Sequence[float], task: AnswerKind = "boxed"
) -> float:
    """Geometric mean of the probabilities of the answer's tokens, in [0, 1].

    ``logprobs``: one natural logarithm per token. The probe is greedy, so each token is the most
    probable one at its step (DEER, arXiv 2504.15895, equation 2). 0.0 if there is no answer: a lone
    closing brace, however probable, is none.
    """
    count = count_answer_tokens(tokens, task)
    if not count or len(tokens) != len(logprobs):
        return 0.0
    return math.exp(sum(logprobs[:count]) / count)


def count_answer_tokens(tokens: Sequence[str], task: AnswerKind = "boxed") -> int:
    """How many of the tokens belong to the answer; 0 if there is none.

    The token that closes the answer counts: its probability says whether the answer is complete.
    """
    text = "".join(tokens)
    if not extract_trial_answer(text, task):
        return 0
    end, seen = _answer_end(text, task), 0
    for count, token in enumerate(tokens):
        if seen > end:
            return count
        seen += len(token)
    return len(tokens)


def _answer_end(text: str, task: AnswerKind) -> int:
    if task == "code":
        fence = text.find("```")
        return len(text) if fence < 0 else fence
    if task == "choice" and (letter := _LETTER.match(text)):
        return letter.end()
    return _end_of_box(text) if task == "boxed" else _end_of_line(text)


def _end_of_box(text: str) -> int:
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return index
    return _end_of_line(text)


def _end_of_line(text: str) -> int:
    begin = len(text) - len(text.lstrip())
    line = text.find("\n", begin)
    return len(text) if line < 0 else line


def is_hesitant(text: str) -> bool:
    """Whether the trial answer contains a word of doubt, as a whole word."""
    return _HESITATION.search(text) is not None


def extract_final_answer(text: str) -> str:
    """The final answer in an answer's text: the content of its last box, else the rest of the line
    after its last "answer is", "answer:" or "correct option is", else the whole text."""
    _, box, boxed = text.rpartition("\\boxed{")
    if box:
        return extract_trial_answer(boxed)
    rest = ""
    for named in _ANSWER_PHRASE.finditer(text):
        rest = text[named.end() :]
    return (rest.partition("\n")[0] or text).strip()


def canonically_equal(one: str, other: str) -> bool:
    """Whether two answers have the same canonical form. Fast; no algebra."""
    return canonical(one) == canonical(other)


@lru_cache(maxsize=4096)
def canonical(answer: str) -> str:
    """The canonical form of an answer: a number in lowest terms, a choice as its letter, JSON with
    sorted keys, a tuple or set by its parts, any other text without markup, spaces and case.

    Linear in the answer's length. ``adjourn.policies.evidence.mathematics`` decides equality by
    algebra.
    """
    text = _DECORATION.sub("", _TEXT_COMMAND.sub(r"\1", answer)).rstrip(".").casefold()
    text = _VARIABLE_PREFIX.sub("", text.replace("\\%", "%"))
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    return _canonical_group(text) or _canonical_json(answer) or _canonical_number(text)


def _canonical_json(answer: str) -> str | None:
    """The canonical form of a JSON object or list, without a fence around it; else None."""
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
    """The canonical form of a tuple, interval or set, the parts of a set sorted; else None."""
    found = _GROUP.fullmatch(text)
    if found is None or "," not in found[2]:
        return None
    opening, inside, closing = found.groups()
    parts = [_canonical_number(part) for part in inside.split(",")]
    if opening == "\\{":
        parts = sorted(set(parts))
    return opening + ",".join(parts) + closing


def _canonical_number(text: str) -> str:
    """A number in lowest terms; any other text unchanged."""
    spelled = text
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        spelled = f"{fraction[1]}{fraction[2]}/{fraction[3]}".replace("--", "")
    spelled = re.sub(r"(?<=\d),(?=\d{3}\b)", "", spelled)
    if len(spelled) > 64:  # a huge exponent or digit string would be slow to read
        return text
    if re.fullmatch(r"[-+]?\d+(?:\.\d*)?(?:/\d+)?|[-+]?\.\d+", spelled) is None:
        return text
    try:
        return str(Fraction(spelled))
    except (ValueError, ZeroDivisionError):
        return text


class AnswerClasses:
    """The answers of one request, grouped into classes of equal meaning.

    Classes are numbered from 0 in order of appearance. ``find`` compares canonical forms; a caller
    that knows more (equality by algebra) compares with ``representatives`` and passes the class to
    ``add``. Only ``add`` changes the state.
    """

    def __init__(self) -> None:
        self._labels: dict[str, int] = {}
        self._representatives: list[str] = []

    def find(self, answer: str) -> int | None:
        """The class with the answer's canonical form, if there is one."""
        return self._labels.get(canonical(answer))

    @property
    def representatives(self) -> list[str]:
        """The first answer of each class, by its number."""
        return list(self._representatives)

    def add(self, answer: str, same_as: int | None = None) -> int:
        """Add to class ``same_as``, else to the class of its canonical form, else to a new one.
        Returns the class."""
        key = canonical(answer)
        if same_as is None:
            same_as = self._labels.get(key, len(self._representatives))
        if same_as == len(self._representatives):
            self._representatives.append(answer)
        return self._labels.setdefault(key, same_as)
