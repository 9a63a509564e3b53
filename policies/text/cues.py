"""Find cues in streamed text, however it is chunked.

A cue is a word that opens a reflection ("Wait", "Alternatively"). It counts only between word
boundaries, so it is confirmed when the next character, or the end of the text, is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

__all__ = ["Cue", "CueScanner"]


@dataclass(frozen=True, slots=True)
class Cue:
    """A confirmed cue. ``start``: characters of the text before it."""

    kind: ClassVar[Literal["cue"]] = "cue"
    word: str
    start: int


@dataclass(frozen=True, slots=True)
class _Patterns:
    complete: re.Pattern[str]
    """A cue between word boundaries."""
    partial: re.Pattern[str]
    """A cue, or the beginning of one, at the end of the text."""
    prefilter: re.Pattern[str]
    """Any two characters that can begin a cue. Most chunks have none and need no other search."""


def _with_word_boundaries(cue: str, pattern: str, *, left_only: bool = False) -> str:
    # Scripts without spaces between words have no word boundaries.
    left = r"(?<!\w)" if cue[0].isascii() and cue[0].isalnum() else ""
    right = r"(?!\w)" if not left_only and cue[-1].isascii() and cue[-1].isalnum() else ""
    return f"{left}{pattern}{right}"


def _two_char_prefix(form: str) -> str:
    first, second = re.escape(form[0]), re.escape(form[1:2])
    return f"{first}(?:{second}|\\Z)" if second else first


@lru_cache(maxsize=64)
def _compile(cues: tuple[str, ...], marks: str) -> _Patterns:
    # "WAIT" counts as "Wait" does; "wait" within a sentence does not.
    forms = sorted({form for cue in cues for form in (cue, cue.upper())}, key=len, reverse=True)
    prefixes = []
    for form in forms:
        nested = ""
        for character in reversed(form):
            nested = re.escape(character) + (f"(?:{nested})?" if nested else "")
        prefixes.append(_with_word_boundaries(form, nested, left_only=True))
    never = r"(?!)"
    return _Patterns(
        complete=re.compile(
            "|".join(_with_word_boundaries(form, re.escape(form)) for form in forms) or never
        ),
        partial=re.compile(f"(?:{'|'.join(prefixes) or never})\\Z"),
        prefilter=re.compile(
            "|".join((*sorted(map(_two_char_prefix, forms)), *map(re.escape, marks))) or never
        ),
    )


class CueScanner:
    """Finds cues in a text that is fed in chunks.

    ``watched_chars``: ``try_skip`` refuses chunks that contain one of them. The work per chunk
    depends on the chunk and the longest cue, never on the length of the text.

    state            content                                                   changed by
    ---------------  --------------------------------------------------------  ---------------
    length           characters fed                                            all methods
    settled_length   no unconfirmed cue begins before so many characters: a    all methods
                     caller that cuts *before* cues may release that much
    _tail            the undecided text, with one character before it          all methods
    """

    __slots__ = ("_patterns", "_prefilter_search", "_tail", "length", "settled_length")

    def __init__(self, cues: tuple[str, ...], watched_chars: str = "") -> None:
        self._patterns = _compile(cues, watched_chars)
        self._prefilter_search = self._patterns.prefilter.search
        self._tail = ""
        self.length = 0
        self.settled_length = 0

    def try_skip(self, chunk: str) -> bool:
        """Fast path: True if the chunk has no part of a cue and no watched character, and is read.

        If False, nothing was read: pass the chunk to ``feed``.
        """
        if self.settled_length < self.length or self._prefilter_search(chunk) is not None:
            return False
        if chunk:
            self.length = self.settled_length = self.length + len(chunk)
            self._tail = chunk[-1]
        return True

    def feed(self, chunk: str) -> list[Cue]:
        """The cues that this chunk confirmed, in order."""
        if self.try_skip(chunk):
            return []
        text = self._tail + chunk
        base = self.length - len(self._tail)
        begin, found = self.settled_length - base, []
        self.length += len(chunk)
        while True:
            # If the text may end with the beginning of a cue, nothing from there on is certain:
            # a longer cue may contain the one found.
            partial = self._patterns.partial.search(text, begin)
            open_from = len(text) if partial is None else partial.start()
            match = self._patterns.complete.search(text, begin)
            if match is None or match.start() >= open_from:
                break
            found.append(Cue(match.group(), base + match.start()))
            begin = match.end()
        self.settled_length = base + open_from
        self._tail = text[max(open_from - 1, 0) :]
        return found

    def close(self) -> list[Cue]:
        """The text is over, which confirms a cue at its very end."""
        base = self.length - len(self._tail)
        matches = self._patterns.complete.finditer(self._tail, self.settled_length - base)
        found = [Cue(match.group(), base + match.start()) for match in matches]
        self.settled_length = self.length
        self._tail = ""
        return found
