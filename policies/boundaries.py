"""Find where sentences, paragraphs and steps end in a stream of text, however it is cut.

That something has ended is certain when the next text begins. It ended where its own text does,
and there a cut may be made, before the space or empty line that follows; where these came in one
piece with the text's last character, behind that piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LONGEST_STEP", "SHORTEST_STEP", "Boundary", "BoundaryScanner"]

SHORTEST_STEP, LONGEST_STEP = 200, 1000
"""Characters of a step: with so many it ends with its paragraph, or else with its sentence."""

_ENDS = frozenset(".!?…")
# Scripts without spaces between sentences have no space to wait for.
_WIDE_ENDS = frozenset("。！？")  # noqa: RUF001
_CLOSERS = frozenset("\"')]}*`”’»」』）")  # noqa: RUF001
_ANY_END = _ENDS | _WIDE_ENDS
_TRAILING = _ANY_END | _CLOSERS


@dataclass(frozen=True, slots=True)
class Boundary:
    """An end. ``start``: characters before the place for a cut. ``text``: the sentence or step
    that ended, with the space behind it; a paragraph's is not kept."""

    kind: Literal["sentence", "paragraph", "step"]
    start: int
    text: str = ""


class BoundaryScanner:
    """Feed it pieces; it answers with the ends that have become certain, in order.

    A sentence ends before a space with ``.``, ``!``, ``?`` or ``…`` and what closes it, and with
    its line: "3.14" is one, "e.g. this" is taken for two. A paragraph ends with an empty line, its
    last sentence with it. ``settled``: no end that is still to come lies before so many
    characters. The work per character is constant.
    """

    __slots__ = (
        *("_begun", "_blank", "_end", "_newlines"),
        *("_sentence", "_step", "_step_start", "length", "settled"),
    )

    def __init__(self) -> None:
        self.length = 0
        self.settled = 0
        self._begun = False
        self._end = ""  # what ended a sentence, where nothing but what closes it followed
        self._blank = False  # space followed the last text
        self._newlines = 0
        self._sentence: list[str] = []
        self._step: list[str] = []
        self._step_start = 0

    def feed(self, piece: str) -> list[Boundary]:
        found: list[Boundary] = []
        unread = 0  # from here on the piece belongs to the sentence that is open
        place = self.settled  # behind the last text
        for index, character in enumerate(piece):
            if character.isspace():
                self._blank = True
                self._newlines += character == "\n"
                continue
            if self._blank or not self._end or character not in _TRAILING:
                if self._ended():
                    self._sentence.append(piece[unread:index])
                    unread = index
                    found += self._close(place)
                self._begun, self._blank, self._newlines, self._end = True, False, 0, ""
            if character in _ANY_END:
                self._end = character
            place = self.length + index + 1
        self._sentence.append(piece[unread:])
        self.length += len(piece)
        if place > self.settled or not self._begun:
            self.settled = self.length
        return found

    def _ended(self) -> bool:
        """Whether a sentence ended before the character that is read."""
        if not self._begun:
            return False
        return self._newlines > 0 or self._end in _WIDE_ENDS or (self._blank and self._end != "")

    def _close(self, place: int) -> list[Boundary]:
        sentence, paragraph = "".join(self._sentence), self._newlines > 1
        self._sentence = []
        self._step.append(sentence)
        found = [Boundary("sentence", place, sentence)]
        if paragraph:
            found.append(Boundary("paragraph", place))
        if place - self._step_start >= (SHORTEST_STEP if paragraph else LONGEST_STEP):
            found.append(Boundary("step", place, "".join(self._step)))
            self._step, self._step_start = [], place
        return found
