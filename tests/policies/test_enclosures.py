"""Where a cut would part a program or a string, however the text comes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.enclosures import LONGEST, Enclosures

PARTS = ("`", "``", "```", "```py\n", '"', "\\", '\\"', "\n", "a", " one.", ' "b": "c. d"', "")


def state(pieces: list[str]) -> Enclosures:
    made, length = Enclosures(), 0
    for piece in pieces:
        made.feed(piece, length)
        length += len(piece)
    return made


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.data())
def test_however_it_is_cut(parts: list[str], data: st.DataObject) -> None:
    """Piece by piece it knows what it knows of the whole, at every place of the latest piece."""
    text = "".join(parts)
    cut = data.draw(st.integers(0, len(text)))
    cuts = sorted({0, *data.draw(st.lists(st.integers(0, cut), max_size=6)), cut})
    pieces = [text[a:b] for a, b in pairwise(cuts)] + [text[cut:]]
    whole, parted = state([text]), state(pieces)
    assert whole.open is parted.open
    for place in range(cut, len(text) + 1):
        assert whole.holds(place) is parted.holds(place), (text, pieces, place)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("So:\n```py\nx = 1.\n```\nIt is.", range(5, 20)),
        ('say {"a": "one. Two"} so', [*range(6, 8), *range(11, 20)]),
        (r'"a\". b" c', range(1, 8)),
        ('5" wide.\nSo it is.', []),
        ("use `x.` or ``y``.", []),
        ("a ``` that is never closed. So.", range(3, 32)),
        ("````md\n```\nx", range(1, 10)),
    ],
)
def test_what_is_held_together(text: str, held: list[int]) -> None:
    """From behind the first character of what opens it to before the last of what closes it; a
    string ends with its line."""
    made = Enclosures()
    made.feed(text, 0)
    assert [place for place in range(len(text) + 1) if made.holds(place)] == [*held]


def test_an_opening_that_nothing_closes_is_none_in_the_end() -> None:
    """Somebody only spoke of backticks."""
    made = state(["a ```", "x" * LONGEST])
    assert made.open
    made.feed("z", LONGEST + 5)
    assert not made.open


def test_what_is_left_out_says_nothing() -> None:
    """Pieces without a mark need not be shown: a run of backticks does not go on behind them."""
    made = Enclosures()
    made.feed("``", 0)
    made.feed("`", 9)
    assert not made.open
    made.feed("``", 10)
    assert made.open
