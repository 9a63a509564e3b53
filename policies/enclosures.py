"""Where a text is within a code fence or a quoted string, however it is cut into pieces.

Nothing is cut there: half a program, or half a JSON string, is neither thought nor answer, and the
model would go on with it behind the cut. A fence is whatever stands between runs of three
backticks or more; a string is what stands between two double quotes of one line.
"""

from __future__ import annotations

__all__ = ["LONGEST", "MARKS", "Enclosures"]

MARKS = '`"'
"""Characters that a piece must hold to open anything."""
LONGEST = 4000
"""Characters after which an opening is taken for none: somebody only spoke of backticks."""

_FENCE = 3


class Enclosures:
    """Feed it pieces. ``open``: whether the text ends within one. The work a piece depends on the
    piece alone."""

    __slots__ = ("_began", "_escaped", "_length", "_mark", "_run")

    def __init__(self) -> None:
        self._length = 0
        self._mark = ""  # what is open: "`" or '"'
        self._began = 0  # characters before what is open
        self._run = 0  # backticks at the end of the text
        self._escaped = False  # the next character is

    @property
    def open(self) -> bool:
        return self._mark != ""

    def feed(self, piece: str, start: int) -> None:
        """``start``: characters before ``piece``; those that were left out hold no mark, and none
        was open before them."""
        if start != self._length:
            self._run, self._escaped = 0, False
        self._length = start + len(piece)
        if self._mark and start - self._began > LONGEST:
            self._mark = ""
        if self._mark or self._run or '"' in piece or "`" in piece:
            for place, character in enumerate(piece, start):
                self._read(character, place)

    def _read(self, character: str, place: int) -> None:
        self._run = self._run + 1 if character == "`" else 0
        if self._mark == '"':
            if self._escaped and character != "\n":
                self._escaped = False
            elif character in '"\n':
                self._mark = ""
            else:
                self._escaped = character == "\\"
        elif self._run == _FENCE:
            self._mark, self._began = "" if self._mark else "`", place
        elif character == '"' and not self._mark:
            self._mark, self._began, self._escaped = '"', place, False
