"""The ends of sentences, paragraphs and steps do not depend on the chunking."""

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
    """(kind, end of the text, begin of the next), found in the whole text at once."""
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


def scan(chunks: list[str]) -> list[Boundary]:
    scanner = BoundaryScanner()
    return [boundary for piece in chunks for boundary in scanner.feed(piece)]


@st.composite
def chunked(draw: st.DrawFn) -> list[str]:
    """A text of characters that begin and end sentences, in chunks."""
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
    chunks = []
    while text:
        size = draw(st.integers(1, min(len(text), 5)))
        chunks.append(text[:size])
        text = text[size:]
    return chunks


def cuts(chunks: list[str]) -> list[int]:
    """Characters before each place between two chunks."""
    ends, at = [], 0
    for piece in chunks:
        at += len(piece)
        ends.append(at)
    return ends


@given(chunked())
def test_ends_do_not_depend_on_the_chunking(chunks: list[str]) -> None:
    """Chunks give the ends of the whole text, each at the first chunk end after its text."""
    expected = [
        (kind, next((cut for cut in cuts(chunks) if end <= cut <= begin), end))
        for kind, end, begin in oracle("".join(chunks))
    ]
    assert [(b.kind, b.start) for b in scan(chunks) if b.kind != "step"] == expected


@given(chunked())
def test_no_end_is_found_in_settled_text(chunks: list[str]) -> None:
    """No end lies before an earlier settled length, which only grows."""
    scanner = BoundaryScanner()
    for piece in chunks:
        settled = scanner.settled_length
        assert [b for b in scanner.feed(piece) if b.start < settled] == []
        assert settled <= scanner.settled_length <= scanner.length


@given(chunked())
def test_sentences_concatenate_to_the_text(chunks: list[str]) -> None:
    """Concatenated, they are the text up to the last end."""
    sentences = "".join(b.text for b in scan(chunks) if b.kind == "sentence")
    assert "".join(chunks).startswith(sentences)


@given(
    st.lists(st.sampled_from(["x" * 90 + ". ", "y" * 150 + "\n\n", "z" * 700, "\n"]), max_size=30)
)
def test_steps_are_paragraphs_merged(chunks: list[str]) -> None:
    """A step is a run of sentences, no shorter than the shortest, and ends with the first paragraph
    from there on, or with the first sentence from the longest on."""
    scanner, text = BoundaryScanner(), ""
    for piece in chunks:
        found = scanner.feed(piece)
        for step in (b for b in found if b.kind == "step"):
            text += step.text
            assert "".join(chunks).startswith(text)
            size = len(step.text.rstrip())
            assert size >= MIN_STEP_CHARS
            assert size >= MAX_STEP_CHARS or step.text.endswith("\n\n")


@pytest.mark.parametrize(
    ("chunks", "expected"),
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
def test_ends_in_an_engines_chunks(chunks: list[str], expected: list[tuple[str, int]]) -> None:
    """Kind and place of each end, in chunks as an engine sends them."""
    assert [(b.kind, b.start) for b in scan(chunks)] == expected
