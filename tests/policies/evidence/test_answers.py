"""Trial answers are extracted, compared by meaning, and rated by their tokens."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.evidence.answers import (
    INDUCERS_BY_KIND,
    AnswerClasses,
    AnswerKind,
    answer_confidence,
    canonical,
    canonically_equal,
    count_answer_tokens,
    extract_final_answer,
    extract_trial_answer,
    is_hesitant,
)
from adjourn.policies.text.dialect import builtin_dialects

_PLAIN = st.text("ab1 \\", max_size=5)
_NESTED = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner | inner.map(lambda text: f"{{{text}}}"), max_size=3).map("".join),
    max_leaves=8,
)


def logs(*probabilities: float) -> tuple[float, ...]:
    return tuple(math.log(p) for p in probabilities)


@given(_NESTED, st.text("ab{}\n ", max_size=8))
def test_the_answer_runs_to_the_brace_that_closes_it(answer: str, rest: str) -> None:
    """Trap 4: braces within the answer belong to it; nothing after the closing one does."""
    assert extract_trial_answer(f"{answer}}}{rest}") == answer.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\frac{1}{2}}", "\\frac{1}{2}"),
        (" \\sqrt{\\frac{a}{b_{1}}} } and so", "\\sqrt{\\frac{a}{b_{1}}}"),
        ("\\{1, 2\\}}", "\\{1, 2\\}"),
        ("42", "42"),
        ("\n\n42\nSo it is", "42"),
        ("\\frac{1}{2", "\\frac{1}{2"),
        ("}", ""),
        (" \n }", ""),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_trial_answers(text: str, expected: str) -> None:
    """Trap 4: nested, unfinished, empty and brace-only answers."""
    assert extract_trial_answer(text) == expected


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_confidence_is_the_geometric_mean(probabilities: list[float]) -> None:
    """The n-th root of the product of the answer's token probabilities, the closing brace's
    included."""
    tokens = ["1"] * (len(probabilities) - 1) + ["1}"]
    expected = math.prod(probabilities) ** (1 / len(probabilities))
    assert answer_confidence(tokens, logs(*probabilities)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tokens", "logprobs"),
    [
        ((), ()),
        (("}",), (0.0,)),
        ((" ", "}"), (0.0, 0.0)),
        (("\n",), (0.0,)),
        (("4", "2"), (0.0,)),
        (("42",), ()),
    ],
)
def test_without_an_answer_confidence_is_zero(
    tokens: tuple[str, ...], logprobs: tuple[float, ...]
) -> None:
    """Trap 4: an empty answer, a lone brace or missing log-probabilities."""
    assert answer_confidence(tokens, logprobs) == 0.0


def test_the_confidence_of_one_token() -> None:
    """Trap 4: one token is an answer, with that token's probability."""
    assert answer_confidence(("7",), logs(0.5)) == pytest.approx(0.5)


def test_the_closing_brace_counts() -> None:
    """Its probability says whether the answer is complete."""
    assert answer_confidence(("42", "}"), logs(0.9, 0.4)) == pytest.approx(0.6)


def test_tokens_after_the_closing_brace_do_not_count() -> None:
    """Text after the answer says nothing about the answer."""
    tokens, logprobs = ("4", "2", "}", ".\n", "So"), logs(0.9, 0.9, 0.9, 0.1, 0.1)
    assert answer_confidence(tokens, logprobs) == pytest.approx(0.9)


def test_tokens_after_the_answers_line_do_not_count() -> None:
    """Without a closing brace the answer is one line; probable text after it does not count."""
    tokens = ("\n", "42", "\n", *("talk",) * 17)
    logprobs = logs(0.5, 0.5, 0.5, *(1.0,) * 17)
    assert answer_confidence(tokens, logprobs) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "text", ["now we know", "knot", "butter", "contribute", "Hmong", "awaits", "await", "debut"]
)
def test_doubt_within_a_word_does_not_count(text: str) -> None:
    """Trap 5: words of doubt are whole words ("no" in "know" is none)."""
    assert not is_hesitant(text)


@pytest.mark.parametrize(
    "text", ["Wait, 5", "5? Hmm", "HMMM.", "But", "maybe 3", "I am not sure", "Let me check"]
)
def test_words_of_doubt(text: str) -> None:
    """Found at any place and in any case."""
    assert is_hesitant(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", "42.0"),
        ("42", " 42. "),
        ("1,000", "1000"),
        ("1,234,567", "1234567"),
        ("\\frac{1}{2}", "0.5"),
        ("\\dfrac{1}{2}", "1/2"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("$x$", "x"),
        ("Paris", "paris."),
        ("\\text{yes}", "Yes"),
        ("5\\text{ cm}", "5 cm"),
        ("x + 1", "x+1"),
        ("10\\,000", "10000"),
        (".5", "0.5"),
        ("+3", "3"),
        ("x = 5", "5"),
        ("**42**", "42"),
        ("(A)", "a."),
        ("Option B", "\\text{(B)}"),
        ("(\\frac{1}{2}, 3)", "\\left(0.5, 3\\right)"),
        ("\\{2, 1, 1\\}", "\\{1,2\\}"),
        ("[1/2, 3]", "[0.5, 3]"),
        ('{"a": 1.0, "b": [true]}', '```json\n{"b": [true], "a": 1}\n```'),
        ("50\\%", "50%"),
    ],
)
def test_answers_that_mean_the_same(one: str, other: str) -> None:
    """Numbers compare as numbers, other text without markup, in either order."""
    assert canonically_equal(one, other)
    assert canonically_equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", "4"),
        ("42", "-42"),
        ("(1,234)", "(1234)"),
        ("1/2", "2/1"),
        ("1/0", "2/0"),
        ("x", "y"),
        ("1", ""),
        ("9" * 100, "9" * 99),
        ("1e3", "1000"),
        ("(1, 2)", "(2, 1)"),
        ("(1, 2)", "[1, 2]"),
        ('{"a": "B"}', '{"a": "b"}'),
        ('{"a": 1}', '{"a": true}'),
        ("2*3", "23"),
        ("Option B", "Option C"),
        ("50%", "50"),
    ],
)
def test_answers_that_differ(one: str, other: str) -> None:
    """Answers without a common canonical form differ."""
    assert not canonically_equal(one, other)
    assert not canonically_equal(other, one)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{1}, or rather \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("The answer is 7.\nDone.", "7."),
        ("Answer: B", "B"),
        ("**Final Answer**\nThe correct option is (B).", "(B)."),
        ("It is what it is.", "It is what it is."),
        ("the answer is 3? No, the answer is: 4", "4"),
        ("", ""),
    ],
)
def test_final_answers(text: str, answer: str) -> None:
    """The last box, else what follows the last "answer is", else the whole text."""
    assert extract_final_answer(text) == answer


@given(st.text(max_size=80), st.text(max_size=80))
def test_equality_is_an_equivalence(one: str, other: str) -> None:
    """Any text equals itself, and its canonical form is its own canonical form."""
    assert canonically_equal(one, one)
    assert canonically_equal(one, other) == canonically_equal(other, one)


@given(st.lists(st.sampled_from(["1", "1.0", "2", "\\frac{4}{2}", "x", "$x$"]), max_size=20))
def test_classes_are_numbered_in_order_of_appearance(answers: list[str]) -> None:
    """Equal answers share a number, and no number is left out."""
    classes = AnswerClasses()
    labels = [classes.add(answer) for answer in answers]
    assert list(dict.fromkeys(labels)) == list(range(len(set(labels))))
    for one, a in zip(labels, answers, strict=True):
        for other, b in zip(labels, answers, strict=True):
            assert (one == other) == canonically_equal(a, b)
    assert len(classes.representatives) == len(set(labels))


def test_an_answer_can_join_a_class() -> None:
    """An answer added to a class by the caller is found there later."""
    classes = AnswerClasses()
    classes.add("\\sqrt{8}")
    assert classes.find("2\\sqrt{2}") is None
    assert classes.add("2\\sqrt{2}", same_as=0) == 0
    assert classes.find("$2\\sqrt{2}$") == 0
    assert classes.representatives == ["\\sqrt{8}"]


@given(st.integers(-(10**9), 10**9))
def test_integers_in_any_notation(number: int) -> None:
    """Thousands separators, a trailing zero and dollar signs change no number."""
    assert canonically_equal(str(number), f"${number:,}.0$")


@pytest.mark.parametrize(
    ("task", "drawn", "answer", "own"),
    [
        ("choice", [" B", ")", " because", " it"], "B", 2),
        ("choice", [" (", "C", ")", "."], "(C", 3),
        ("choice", ["\n", "None", " of"], "None of", 3),
        ("text", [" Mount", " {", " Blanc", "\n", "It"], "Mount { Blanc", 4),
        ("code", ["def", " f", "():", "\n", " pass", "\n", "```", "\n"], "def f():\n pass", 7),
        ("code", ["x", " = 1", "\n"], "x = 1", 3),
    ],
)
def test_each_kind_of_answer_has_its_own_end(
    task: AnswerKind, drawn: list[str], answer: str, own: int
) -> None:
    assert extract_trial_answer("".join(drawn), task) == answer
    assert count_answer_tokens(drawn, task) == own


def test_a_choice_is_its_letter() -> None:
    drawn = [" (C) is right", " C", " **C**", " C. It follows"]
    assert len({canonical(extract_trial_answer(one, "choice")) for one in drawn}) == 1


def test_every_kind_has_an_inducer_in_every_dialect() -> None:
    for dialect in builtin_dialects().values():
        assert set(INDUCERS_BY_KIND.values()) <= dialect.inducers.keys()
