"""Cues are found however the text is chunked, and only as whole words."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adjourn.policies.text.cues import Cue, CueScanner
from adjourn.policies.text.dialect import builtin_dialects

_BUILTIN = next(iter(builtin_dialects().values())).cues
_SETS = [
    _BUILTIN,
    ("Wait",),
    ("Hold", "Hold on", "on"),
    ("But wait now", "wait", "now"),
    ("等等", "等一下"),
    ("ああ", "Wait"),
    ("...", "Hmm..."),
    (),
]
_SEPARATORS = ["", " ", "  ", ".", "\n\n", "_", "x", "é", "ing", "A", "等", "-", "'"]


def oracle(text: str, cues: tuple[str, ...]) -> list[Cue]:
    """The cues of the whole text: at each place the longest, from left to right."""
    forms = sorted({form for cue in cues for form in (cue, cue.upper())}, key=len, reverse=True)
    found, at = [], 0
    while at < len(text):
        form = next((f for f in forms if text.startswith(f, at) and _bounded(text, at, f)), None)
        if form is not None:
            found.append(Cue(form, at))
        at += len(form) if form else 1
    return found


def _bounded(text: str, at: int, form: str) -> bool:
    def word(index: int) -> bool:
        return 0 <= index < len(text) and (text[index].isalnum() or text[index] == "_")

    end = at + len(form)
    left = form[0].isascii() and form[0].isalnum() and word(at - 1)
    right = form[-1].isascii() and form[-1].isalnum() and word(end)
    return not left and not right


def scan(chunks: list[str], cues: tuple[str, ...]) -> list[Cue]:
    scanner = CueScanner(cues)
    return [cue for piece in chunks for cue in scanner.feed(piece)] + scanner.close()


@st.composite
def chunked(draw: st.DrawFn) -> tuple[tuple[str, ...], list[str]]:
    """Cues, and a text made of their fragments, in chunks."""
    cues = draw(st.sampled_from(_SETS))
    forms = [form for cue in cues for form in (cue, cue.upper(), cue.lower())]
    fragments = [f[:n] for f in forms for n in range(1, len(f) + 1)] + forms * 3
    words = st.sampled_from(fragments) if fragments else st.just("Wait")
    parts = draw(st.lists(st.one_of(words, st.sampled_from(_SEPARATORS)), max_size=12))
    text = "".join(parts)
    chunks = []
    while text:
        size = draw(st.integers(0, min(len(text), 6)))
        chunks.append(text[:size])
        text = text[size:]
    return cues, chunks


@given(chunked())
@example((("等等",), list("等等等等")))
@example((("Hold", "Hold on"), ["Hold o", "n."]))
@example((("But wait now", "wait"), ["But wait n", "ow."]))
def test_cues_do_not_depend_on_the_chunking(case: tuple[tuple[str, ...], list[str]]) -> None:
    """Trap 1: chunks give the cues of the whole text, words and places alike."""
    cues, chunks = case
    assert scan(chunks, cues) == oracle("".join(chunks), cues)


@given(chunked())
def test_no_cue_begins_in_settled_text(case: tuple[tuple[str, ...], list[str]]) -> None:
    """No cue begins before an earlier settled length, which only grows."""
    cues, chunks = case
    scanner = CueScanner(cues)
    for piece in chunks:
        settled = scanner.settled_length
        found = scanner.feed(piece)
        assert [c for c in found if c.start < settled] == []
        assert settled <= scanner.settled_length <= scanner.length
    settled = scanner.settled_length
    assert [c for c in scanner.close() if c.start < settled] == []
    assert scanner.settled_length == scanner.length == len("".join(chunks))


@given(chunked())
def test_the_kept_tail_is_bounded(case: tuple[tuple[str, ...], list[str]]) -> None:
    """Between chunks the scanner keeps at most a cue and the character before it."""
    cues, chunks = case
    longest = max((len(form) for cue in cues for form in (cue, cue.upper())), default=0)
    scanner = CueScanner(cues)
    for piece in chunks:
        scanner.feed(piece)
        assert len(scanner._tail) <= longest + 1
        assert scanner.length - scanner.settled_length <= longest


@pytest.mark.parametrize("text", ["Waiting", "Await", "AWait", "wait", "_Wait", "Wait_", "Wait4"])
def test_a_cue_within_a_word_does_not_count(text: str) -> None:
    """Trap 1: "Wait" in "Waiting" or "Await" is not a cue, letter by letter or at once."""
    assert scan([f"so {text} now"], ("Wait",)) == []
    assert scan(list(f"so {text} now"), ("Wait",)) == []


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (["Wa", "it, no"], [Cue("Wait", 0)]),
        (["Wait", "ing"], []),
        (["Wait", " a bit"], [Cue("Wait", 0)]),
        (["so W", "A", "I", "T!"], [Cue("WAIT", 3)]),
        (["But ", "wait", "."], [Cue("But wait", 0)]),
        (["But wai", "ting. Wait."], [Cue("Wait", 13)]),
        (["Wait", "", " x"], [Cue("Wait", 0)]),
    ],
)
def test_a_cue_split_over_chunks(chunks: list[str], expected: list[Cue]) -> None:
    """Trap 1: a cue split over chunks is found once, in upper case too."""
    assert scan(chunks, ("Wait", "But wait")) == expected


def test_a_cue_at_the_end_of_the_stream() -> None:
    """Trap 1: a cue at the very end is confirmed only when the stream ends."""
    scanner = CueScanner(("Wait",))
    assert scanner.feed("Oh. Wait") == []
    assert scanner.close() == [Cue("Wait", 4)]


def test_the_beginning_of_a_cue_is_not_settled() -> None:
    """Up to the settled length the caller may release text; the beginning of a cue is not in it."""
    scanner = CueScanner(("Wait",))
    scanner.feed("and so W")
    assert scanner.settled_length == 7
    scanner.feed("e")
    assert scanner.settled_length == scanner.length == 9


def test_without_cues_all_text_is_settled() -> None:
    """A policy without cues holds no text back."""
    scanner = CueScanner(())
    assert scanner.feed("Wait") == []
    assert scanner.settled_length == 4


def test_the_work_does_not_grow_with_the_text() -> None:
    """After 100,000 characters the scanner holds one of them."""
    scanner = CueScanner(_BUILTIN)
    for _ in range(10_000):
        scanner.feed(" lorem ip")
    assert len(scanner._tail) == 1
    assert scanner.feed(" Wait, ") == [Cue("Wait", 90_001)]
