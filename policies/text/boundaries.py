"""Find the ends of sentences, paragraphs and steps in streamed text, however it is chunked.

An end is certain only when the next text begins. The end lies after the last character of the
text: a cut there comes before the space or the empty line that follows, or after the chunk if both
came in one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MAX_STEP_CHARS", "MIN_STEP_CHARS", "Boundary", "BoundaryScanner"]

MIN_STEP_CHARS, MAX_STEP_CHARS = 200, 1000
"""A step of at least the first length ends with its paragraph, of the second with its sentence."""

_TERMINATORS = frozenset(".!?…")
# In scripts without spaces between sentences, the terminator alone ends one.
_CJK_TERMINATORS = frozenset("。！？")  # noqa: RUF001
_CLOSERS = frozenset("\"')]}*`”’»」』）")  # noqa: RUF001
_ALL_TERMINATORS = _TERMINATORS | _CJK_TERMINATORS
_TRAILING = _ALL_TERMINATORS | _CLOSERS


@dataclass(frozen=True, slots=True)
class Boundary:
    """The end of a sentence, paragraph or step.

    ``start``: characters of the text before it, where a cut is possible. ``text``: the sentence or
    step with the space after it; empty for a paragraph.
    """

    kind: Literal["sentence", "paragraph", "step"]
    start: int
    text: str = ""


class BoundaryScanner:
    """Finds ends in a text that is fed in chunks. Constant work per character.

    A sentence ends at ``.``, ``!``, ``?`` or ``…``, with closing quotes and brackets, if white
    space follows; and at the end of its line. "3.14" is one sentence, "e.g. this" is taken for two.
    A paragraph ends at an empty line, and its last sentence with it.

    state            content                                                   changed by
    ---------------  --------------------------------------------------------  ---------------
    length           characters fed                                            feed
    settled_length   no end found later lies before so many characters         feed
    _has_text        a sentence has begun                                      feed
    _terminator      what ended it, if only closing characters followed        feed
    _after_space     white space followed its last text                        feed
    _newlines        line ends since its last text                             feed
    _sentence        the sentence's text, in parts                             feed
    _step            the sentences of the step; ``_step_start`` is its start   _close_sentence
    """

    __slots__ = (
        *("_has_text", "_after_space", "_terminator", "_newlines"),
        *("_sentence", "_step", "_step_start", "length", "settled_length"),
    )

    def __init__(self) -> None:
        self.length = 0
        self.settled_length = 0
        self._has_text = False
        self._terminator = ""
        self._after_space = False
        self._newlines = 0
        self._sentence: list[str] = []
        self._step: list[str] = []
        self._step_start = 0

    def feed(self, chunk: str) -> list[Boundary]:
        """The ends that this chunk made certain, in order."""
        found: list[Boundary] = []
        unread = 0  # the chunk from here on belongs to the open sentence
        place = self.settled_length  # the end of the last text
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
        """Whether a sentence ended before the current character."""
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
