"""Find where sentences, paragraphs and steps end in a stream of text, however it is cut.

That something has ended is certain when the next text begins. It ended where its own text does,
and there a cut may be made, before the space or empty line that follows; where these came in one
piece with the text's last character, behind that piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MAX_STEP_CHARS", "MIN_STEP_CHARS", "Boundary", "BoundaryScanner"]

MIN_STEP_CHARS, MAX_STEP_CHARS = 200, 1000
"""Characters of a step: with so many it ends with its paragraph, or else with its sentence."""

_TERMINATORS = frozenset(".!?…")
# Scripts without spaces between sentences have no space to wait for.
_CJK_TERMINATORS = frozenset("。！？")  # noqa: RUF001
_CLOSERS = frozenset("\"')]}*`”’»」』）")  # noqa: RUF001
_ALL_TERMINATORS = _TERMINATORS | _CJK_TERMINATORS
_TRAILING = _ALL_TERMINATORS | _CLOSERS


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
        *("_has_text", "_after_space", "_terminator", "_newlines"),
        *("_sentence", "_step", "_step_start", "length", "settled_length"),
    )

    def __init__(self) -> None:
        self.length = 0
        self.settled_length = 0
        self._has_text = False
        self._terminator = ""  # what ended a sentence, where nothing but what closes it followed
        self._after_space = False  # space followed the last text
        self._newlines = 0
        self._sentence: list[str] = []
        self._step: list[str] = []
        self._step_start = 0

    def feed(self, chunk: str) -> list[Boundary]:
        found: list[Boundary] = []
        unread = 0  # from here on the piece belongs to the sentence that is open
        place = self.settled_length  # behind the last text
        for index, character in enumerate(chunk):
            if character.isspace():
                self._after_space = True
                self._newlines += character == "\n"
                continue
            if self._after_space or not self._terminator or character not in _TRAILING:
                if self._sentence_ended():
                    self._sentence.append(chunk[unread:index])
                    unread = index
                    found += self._close_sentence(place)
                self._has_text, self._after_space, self._newlines, self._terminator = (
                    True,
                    False,
                    0,
                    "",
                )
            if character in _ALL_TERMINATORS:
                self._terminator = character
            place = self.length + index + 1
        self._sentence.append(chunk[unread:])
        self.length += len(chunk)
        if place > self.settled_length or not self._has_text:
            self.settled_length = self.length
        return found

    def _sentence_ended(self) -> bool:
        """Whether a sentence ended before the character that is read."""
        if not self._has_text:
            return False
        return (
            self._newlines > 0
            or self._terminator in _CJK_TERMINATORS
            or (self._after_space and self._terminator != "")
        )

    def _close_sentence(self, place: int) -> list[Boundary]:
        sentence, paragraph = "".join(self._sentence), self._newlines > 1
        self._sentence = []
        self._step.append(sentence)
        found = [Boundary("sentence", place, sentence)]
        if paragraph:
            found.append(Boundary("paragraph", place))
        if place - self._step_start >= (MIN_STEP_CHARS if paragraph else MAX_STEP_CHARS):
            found.append(Boundary("step", place, "".join(self._step)))
            self._step, self._step_start = [], place
        return found
