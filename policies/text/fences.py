"""Find whether streamed text ends within a code fence or a quoted string, however it is chunked.

A trace is never cut there: after the cut the model would continue the program or the JSON string.
A fence is the text between runs of three or more backticks; a string is the text between two double
quotes on one line.
"""

from __future__ import annotations

__all__ = ["FENCE_CHARS", "MAX_FENCED_CHARS", "FenceScanner"]

FENCE_CHARS = '`"'
"""A chunk opens a fence or a string only if it has one of these."""
MAX_FENCED_CHARS = 4000
"""After so many characters an opening no longer counts: the text only mentioned backticks."""

_FENCE_LENGTH = 3


class FenceScanner:
    """Follows fences and strings in a text that is fed in chunks; work per chunk is linear in it.

    state          content                                                    changed by
    -------------  ---------------------------------------------------------  ----------
    _length        characters of the text so far                              feed
    _delimiter     what is open: ``"`"``, a double quote, or "" for nothing   _feed_char
    _opened_at     characters before what is open                             _feed_char
    _backticks     backticks at the end of the text                           _feed_char
    _escaped       within a string: the next character is escaped             _feed_char
    """

    __slots__ = ("_backticks", "_delimiter", "_escaped", "_length", "_opened_at")

    def __init__(self) -> None:
        self._length = 0
        self._delimiter = ""
        self._opened_at = 0
        self._backticks = 0
        self._escaped = False

    @property
    def is_open(self) -> bool:
        """Whether the text ends within a fence or a string."""
        return self._delimiter != ""

    def feed(self, chunk: str, start: int) -> None:
        """``start``: characters of the text before ``chunk``. The caller may leave out text without
        ``FENCE_CHARS`` while nothing is open."""
        if start != self._length:
            self._backticks, self._escaped = 0, False
        self._length = start + len(chunk)
        if self._delimiter and start - self._opened_at > MAX_FENCED_CHARS:
            self._delimiter = ""
        if self._delimiter or self._backticks or '"' in chunk or "`" in chunk:
            for place, character in enumerate(chunk, start):
                self._feed_char(character, place)

    def _feed_char(self, character: str, place: int) -> None:
        self._backticks = self._backticks + 1 if character == "`" else 0
        if self._delimiter == '"':
            if self._escaped and character != "\n":
                self._escaped = False
            elif character in '"\n':
                self._delimiter = ""
            else:
                self._escaped = character == "\\"
        elif self._backticks == _FENCE_LENGTH:
            self._delimiter, self._opened_at = "" if self._delimiter else "`", place
        elif character == '"' and not self._delimiter:
            self._delimiter, self._opened_at, self._escaped = '"', place, False
