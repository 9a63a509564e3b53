"""Code fences and quoted strings, in which a trace is never cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.text.fences import MAX_FENCED_CHARS, FenceScanner

PARTS = ("`", "``", "```", "```py\n", '"', "\\", '\\"', "\n", "a", " one.", ' "b": "c. d"', "")


def state(chunks: list[str]) -> FenceScanner:
    made, length = FenceScanner(), 0
    for piece in chunks:
        made.feed(piece, length)
        length += len(piece)
    return made


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.data())
def test_the_state_does_not_depend_on_the_chunking(parts: list[str], data: st.DataObject) -> None:
    """Fed in chunks, the scanner is in the state that the whole text gives."""
    text = "".join(parts)
    inner = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    cuts = sorted({0, *inner, len(text)})
    assert state([text[a:b] for a, b in pairwise(cuts)]).is_open is state([text]).is_open


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("So:\n```py\nx = 1.\n```\nIt is.", range(7, 20)),
        ('say {"a": "one. Two"} so', [*range(6, 8), *range(11, 20)]),
        (r'"a\". b" c', range(1, 8)),
        ('5" wide.\nSo it is.', range(2, 9)),
        ("use `x.` or ``y``.", []),
        ("a ``` that is never closed.", range(5, 28)),
        ("````md\n```\nx", range(3, 10)),
    ],
)
def test_what_is_fenced(text: str, inside: list[int]) -> None:
    """From after the opening to before the last closing character; a string also ends with its
    line."""
    found = [place for place in range(len(text) + 1) if state([text[:place]]).is_open]
    assert found == [*inside]


def test_an_unclosed_opening_expires() -> None:
    """The text only mentioned backticks."""
    made = state(["a ```", "x" * MAX_FENCED_CHARS])
    assert made.is_open
    made.feed("z", MAX_FENCED_CHARS + 5)
    assert not made.is_open


def test_text_without_fence_characters_may_be_left_out() -> None:
    """A run of backticks does not continue after text that was left out."""
    made = FenceScanner()
    made.feed("``", 0)
    made.feed("`", 9)
    assert not made.is_open
    made.feed("``", 10)
    assert made.is_open
