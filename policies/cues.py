"""Find cues in a stream of text, however it is cut into pieces.

A cue is a word that opens a reflection ("Wait", "Alternatively"). It counts at a word boundary
on both sides, so it is confirmed only when the character behind it, or the end, is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

__all__ = ["Cue", "CueScanner"]


@dataclass(frozen=True, slots=True)
class Cue:
    """A confirmed cue. ``start``: characters before it in the text scanned so far."""

    kind: ClassVar[Literal["cue"]] = "cue"
    word: str
    start: int


@dataclass(frozen=True, slots=True)
class _Patterns:
    whole: re.Pattern[str]
    """A cue between word boundaries."""
    partial: re.Pattern[str]
    """The beginning of a cue, or all of it, at the end of the text."""
    first: re.Pattern[str]
    """What can begin a cue, as far as two characters tell: most pieces hold none, and cost nothing
    more."""


def _bounded(cue: str, pattern: str, *, left_only: bool = False) -> str:
    # Scripts without spaces between words have no word boundaries to ask for.
    left = r"(?<!\w)" if cue[0].isascii() and cue[0].isalnum() else ""
    right = r"(?!\w)" if not left_only and cue[-1].isascii() and cue[-1].isalnum() else ""
    return f"{left}{pattern}{right}"


def _beginning(form: str) -> str:
    first, second = re.escape(form[0]), re.escape(form[1:2])
    return f"{first}(?:{second}|\\Z)" if second else first


@lru_cache(maxsize=64)
def _compile(cues: tuple[str, ...], marks: str) -> _Patterns:
    # "WAIT" is as good a cue as "Wait"; "wait" in the middle of a sentence is not one.
    forms = sorted({form for cue in cues for form in (cue, cue.upper())}, key=len, reverse=True)
    prefixes = []
    for form in forms:
        nested = ""
        for character in reversed(form):
            nested = re.escape(character) + (f"(?:{nested})?" if nested else "")
        prefixes.append(_bounded(form, nested, left_only=True))
    never = r"(?!)"
    return _Patterns(
        whole=re.compile("|".join(_bounded(form, re.escape(form)) for form in forms) or never),
        partial=re.compile(f"(?:{'|'.join(prefixes) or never})\\Z"),
        first=re.compile(
            "|".join((*sorted(map(_beginning, forms)), *map(re.escape, marks))) or never
        ),
    )


class CueScanner:
    """Feed it pieces; it answers with the cues that have become certain.

    ``length`` counts the characters fed; up to ``settled`` no unconfirmed cue can begin, so a
    caller that wants to cut *before* a cue may pass on that much and no more. The work per piece
    depends on the piece and the longest cue, never on the text's length. ``marks``: characters that
    somebody else must see.
    """

    __slots__ = ("_first", "_patterns", "_tail", "length", "settled")

    def __init__(self, cues: tuple[str, ...], marks: str = "") -> None:
        self._patterns = _compile(cues, marks)
        self._first = self._patterns.first.search
        self._tail = ""  # what is still undecided, with one character before it
        self.length = 0
        self.settled = 0

    def skim(self, piece: str) -> bool:
        """The quick way: whether ``piece`` plainly holds no part of a cue, and none of ``marks``.
        Where it says no, nothing was done, and ``feed`` must be given the piece."""
        if self.settled < self.length or self._first(piece) is not None:
            return False
        if piece:
            self.length = self.settled = self.length + len(piece)
            self._tail = piece[-1]
        return True

    def feed(self, piece: str) -> list[Cue]:
        if self.skim(piece):
            return []
        text = self._tail + piece
        base = self.length - len(self._tail)
        begin, found = self.settled - base, []
        self.length += len(piece)
        while True:
            # Where the text's end may be the beginning of a cue, nothing is certain from there on:
            # a longer cue may swallow the one that is seen.
            partial = self._patterns.partial.search(text, begin)
            open_from = len(text) if partial is None else partial.start()
            match = self._patterns.whole.search(text, begin)
            if match is None or match.start() >= open_from:
                break
            found.append(Cue(match.group(), base + match.start()))
            begin = match.end()
        self.settled = base + open_from
        self._tail = text[max(open_from - 1, 0) :]
        return found

    def close(self) -> list[Cue]:
        """The text is over: a cue at its very end is certain now."""
        base = self.length - len(self._tail)
        matches = self._patterns.whole.finditer(self._tail, self.settled - base)
        found = [Cue(match.group(), base + match.start()) for match in matches]
        self.settled = self.length
        self._tail = ""
        return found
