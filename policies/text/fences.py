"""Where a text is within a code fence or a quoted string, however it is cut into pieces.

Nothing is cut there: half a program, or half a JSON string, is neither thought nor answer, and the
model would go on with it behind the cut. A fence is whatever stands between runs of three
backticks or more; a string is what stands between two double quotes of one line.
"""

from __future__ import annotations

__all__ = ["FENCE_CHARS", "MAX_FENCED_CHARS", "FenceScanner"]

FENCE_CHARS = '`"'
"""Characters that a piece must hold to open anything."""
MAX_FENCED_CHARS = 4000
"""Characters after which an opening is taken for none: somebody only spoke of backticks."""

_FENCE_LENGTH = 3


class FenceScanner:
    """Feed it pieces. ``open``: whether the text ends within one. The work a piece depends on the
    piece alone."""

    __slots__ = ("_backticks", "_delimiter", "_escaped", "_length", "_opened_at")

    def __init__(self) -> None:
        self._length = 0
        self._delimiter = ""  # what is open: "`" or '"'
        self._opened_at = 0  # characters before what is open
        self._backticks = 0  # backticks at the end of the text
        self._escaped = False  # the next character is

    @property
    def is_open(self) -> bool:
        return self._delimiter != ""

    def feed(self, chunk: str, start: int) -> None:
        """``start``: characters before ``piece``; those that were left out hold no mark, and none
        was open before them."""
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
