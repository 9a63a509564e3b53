"""Equality by algebra: a library's judgement, asked for only where it may matter."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adjourn.policies.evidence.mathematics import math_equal, may_be_math_equal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
        ("0.5", "\\frac12"),
        ("1/2", "0.5"),
    ],
)
def test_what_algebra_makes_the_same(one: str, other: str) -> None:
    """In either order."""
    assert math_equal(one, other)
    assert math_equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("x+1", "x-1"), ("\\sqrt{8}", "\\sqrt{2}"), ("Paris", "London"), ("\\frac{", "\\sqrt{")],
)
def test_what_it_does_not(one: str, other: str) -> None:
    """What cannot be read is no error, and not equal."""
    assert not math_equal(one, other)


@pytest.mark.parametrize(
    ("one", "other"), [("41", "42"), ("1/2", "1/3"), ("Paris", "2"), ("x" * 300, "x^2"), ("", "1")]
)
def test_what_is_plain_is_not_asked(one: str, other: str) -> None:
    """Numbers, words and prose are settled without it."""
    assert not may_be_math_equal(one, other)


def test_it_is_loaded_when_it_is_needed() -> None:
    """Not by who only compares numbers."""
    script = (
        "import sys; from adjourn.policies.evidence.mathematics import math_equal; "
        "math_equal('1', '2'); math_equal('a', 'b'); print('sympy' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert said.stdout.strip() == b"False"
