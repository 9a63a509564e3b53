"""Find a dialect's markers in a stream of token ids, wherever its chunks end.

A marker may be several tokens ("<|channel|>", "analysis", "<|message|>"), and one may begin inside
another. All of a dialect's are followed at once by one automaton (Aho and Corasick, 1975): a
session keeps a number, its place in it, and each token costs one look-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum

__all__ = ["NOWHERE", "Ids", "Mark", "Markers"]

Ids = tuple[int, ...]
NOWHERE = 0
"""The place where no marker has begun."""


class Mark(Enum):
    """What a marker does. ``BREAK`` ends a trace too, but belongs to what follows: a tool call
    in the midst of thinking, which the engine's parser takes for the end."""

    START = "start"
    END = "end"
    BREAK = "break"


class Markers:
    """The markers of one dialect in one model's ids. Shared by sessions; it does not change.

    ``known`` is what it was made of. ``beginnings`` are the ids that a marker begins with: nowhere,
    no other id matters.
    """

    def __init__(self, markers: Mapping[Ids, Mark]) -> None:
        self.known = dict(markers)
        self._next: list[dict[int, int]] = [{}]
        self._begun = [0]
        self._whole: list[tuple[Mark, int] | None] = [None]
        for ids, mark in markers.items():
            self._add(ids, mark)
        self.beginnings = frozenset(self._next[NOWHERE])
        self._link()
        self._last: dict[int, list[tuple[Ids, Mark]]] = {}
        for ids in sorted(markers, key=len, reverse=True):
            self._last.setdefault(ids[-1], []).append((ids, markers[ids]))

    def _add(self, ids: Ids, mark: Mark) -> None:
        place = NOWHERE
        for count, token in enumerate(ids):
            if token not in self._next[place]:
                self._next[place][token] = len(self._next)
                self._next.append({})
                self._whole.append(None)
                self._begun.append(0)
            if place != NOWHERE:
                self._begun[place] = count
            place = self._next[place][token]
        self._whole[place] = (mark, len(ids))

    def _link(self) -> None:
        """Give each place what its longest other ending knows, nearest places first."""
        shorter = [NOWHERE] * len(self._next)
        queue = deque(self._next[NOWHERE].values())
        while queue:
            place = queue.popleft()
            other = shorter[place]
            for token, following in self._next[place].items():
                shorter[following] = self._next[other].get(token, NOWHERE)
                queue.append(following)
            self._next[place] = self._next[other] | self._next[place]
            self._whole[place] = self._whole[place] or self._whole[other]
            self._begun[place] = self._begun[place] or self._begun[other]

    def step(self, place: int, token: int) -> int:
        """The place behind this token."""
        return self._next[place].get(token, NOWHERE)

    def whole(self, place: int) -> tuple[Mark, int] | None:
        """The longest marker that is whole here, and of how many ids it is."""
        return self._whole[place]

    def begun(self, place: int) -> int:
        """How many of the latest ids may be the beginning of a marker."""
        return self._begun[place]

    def last(self, ids: Sequence[int]) -> Mark | None:
        """What the last marker among ``ids`` does."""
        for end in range(len(ids), 0, -1):
            for marker, mark in self._last.get(ids[end - 1], ()):
                if tuple(ids[max(0, end - len(marker)) : end]) == marker:
                    return mark
        return None

    def lengths(self, mark: Mark) -> set[int]:
        """Of how many ids the markers that do this are."""
        return {found[1] for found in self._whole if found is not None and found[0] is mark}

    def through_end(self, ids: Ids) -> Ids:
        """``ids`` up to the first end marker, that included; all of them where there is none."""
        place = NOWHERE
        for count, token in enumerate(ids, 1):
            place = self.step(place, token)
            found = self.whole(place)
            if found is not None and found[0] is Mark.END:
                return ids[:count]
        return ids
