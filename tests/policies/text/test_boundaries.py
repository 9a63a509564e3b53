"""Sentences, paragraphs and steps end where they do, wherever the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.text.boundaries import (
    MAX_STEP_CHARS,
    MIN_STEP_CHARS,
    Boundary,
    BoundaryScanner,
)

_CLOSERS = "\"')]}*`”’»」』）"  # noqa: RUF001


def oracle(text: str) -> list[tuple[str, int, int]]:
    """(kind, end of the text, begin of the next), the whole text at once."""
    found = []
    for at in range(1, len(text)):
        if text[at].isspace() or not text[:at].strip():
            continue
        before = text[:at].rstrip()
        gap = text[len(before) : at]
        core = before.rstrip(_CLOSERS)
        wide = core[-1:] in tuple("。！？") and core  # noqa: RUF001
        inside = not gap and text[at] in _CLOSERS + ".!?…。！？"  # noqa: RUF001
        ended = gap and core[-1:] in tuple(".!?…") and core
        if "\n" in gap or ended or (wide and not inside):
            found.append(("sentence", len(before), at))
        if gap.count("\n") > 1:
            found.append(("paragraph", len(before), at))
    return found


def scan(pieces: list[str]) -> list[Boundary]:
    scanner = BoundaryScanner()
    return [boundary for piece in pieces for boundary in scanner.feed(piece)]


@st.composite
def chunked(draw: st.DrawFn) -> list[str]:
    """A text of what begins and ends sentences, in pieces."""
    words = [
        "So",
        "3",
        ".",
        "!",
        "…",
        "。",
        "？",  # noqa: RUF001
        " ",
        "\n",
        "\n\n",
        '"',
        ")",
        "*",
        "e.g",
        "\t",
        "é",
    ]
    text = "".join(draw(st.lists(st.sampled_from(words), max_size=25)))
    pieces = []
    while text:
        size = draw(st.integers(1, min(len(text), 5)))
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def cuts(pieces: list[str]) -> list[int]:
    """Characters before each place between two pieces."""
    ends, at = [], 0
    for piece in pieces:
        at += len(piece)
        ends.append(at)
    return ends


@given(chunked())
def test_the_same_ends_whatever_the_chunking(pieces: list[str]) -> None:
    """Pieces give the ends that the whole text gives, each at the first cut behind its text."""
    expected = [
        (kind, next((cut for cut in cuts(pieces) if end <= cut <= begin), end))
        for kind, end, begin in oracle("".join(pieces))
    ]
    assert [(b.kind, b.start) for b in scan(pieces) if b.kind != "step"] == expected


@given(chunked())
def test_settled_text_is_never_taken_back(pieces: list[str]) -> None:
    """No end lies before what an earlier feed had called settled; settled only grows."""
    scanner = BoundaryScanner()
    for piece in pieces:
        settled = scanner.settled_length
        assert [b for b in scanner.feed(piece) if b.start < settled] == []
        assert settled <= scanner.settled_length <= scanner.length


@given(chunked())
def test_sentences_are_the_text(pieces: list[str]) -> None:
    """Put behind one another they are what was read, up to the last end."""
    sentences = "".join(b.text for b in scan(pieces) if b.kind == "sentence")
    assert "".join(pieces).startswith(sentences)


@given(
    st.lists(st.sampled_from(["x" * 90 + ". ", "y" * 150 + "\n\n", "z" * 700, "\n"]), max_size=30)
)
def test_steps_are_paragraphs_merged(pieces: list[str]) -> None:
    """A step is a run of sentences, no shorter than the shortest, and ends with the first paragraph
    from there on, or with the first sentence from the longest on."""
    scanner, text = BoundaryScanner(), ""
    for piece in pieces:
        found = scanner.feed(piece)
        for step in (b for b in found if b.kind == "step"):
            text += step.text
            assert "".join(pieces).startswith(text)
            size = len(step.text.rstrip())
            assert size >= MIN_STEP_CHARS
            assert size >= MAX_STEP_CHARS or step.text.endswith("\n\n")


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["done", ".", " Next"], [("sentence", 5)]),
        (["done", ".", "\n\n", "Next"], [("sentence", 5), ("paragraph", 5)]),
        (["done", ".\n\n", "Next"], [("sentence", 7), ("paragraph", 7)]),
        (["done.\n\nNext"], [("sentence", 5), ("paragraph", 5)]),
        (["= 85", "\n", "85 +"], [("sentence", 4)]),
        (["pi is 3", ".", "14"], []),
        (["he said", ' "no."', " So"], [("sentence", 13)]),
        (["好。", "再"], [("sentence", 2)]),
        (["\n", "Okay"], []),
        (["done", "."], []),
        (["Hmm", "...", " so"], [("sentence", 6)]),
    ],
)
def test_ends(pieces: list[str], expected: list[tuple[str, int]]) -> None:
    """Where what ends, in the pieces that an engine sends."""
    assert [(b.kind, b.start) for b in scan(pieces)] == expected
