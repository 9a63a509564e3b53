"""Equality by algebra: math-verify is asked only if it can matter."""

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
def test_answers_equal_by_algebra(one: str, other: str) -> None:
    """In either order."""
    assert math_equal(one, other)
    assert math_equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("x+1", "x-1"), ("\\sqrt{8}", "\\sqrt{2}"), ("Paris", "London"), ("\\frac{", "\\sqrt{")],
)
def test_answers_different_by_algebra(one: str, other: str) -> None:
    """An answer that cannot be read raises nothing and equals none."""
    assert not math_equal(one, other)


@pytest.mark.parametrize(
    ("one", "other"), [("41", "42"), ("1/2", "1/3"), ("Paris", "2"), ("x" * 300, "x^2"), ("", "1")]
)
def test_plain_answers_need_no_algebra(one: str, other: str) -> None:
    """Numbers, words and prose are decided without the library."""
    assert not may_be_math_equal(one, other)


def test_the_library_is_loaded_at_first_use() -> None:
    """Comparing numbers does not load it."""
    script = (
        "import sys; from adjourn.policies.evidence.mathematics import math_equal; "
        "math_equal('1', '2'); math_equal('a', 'b'); print('sympy' in sys.modules)"
    )
    message = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert message.stdout.strip() == b"False"
