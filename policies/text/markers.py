"""Find a dialect's markers in a stream of token ids, wherever its chunks end.

A marker may be several tokens ("<|channel|>", "analysis", "<|message|>"), and one may begin inside
another. All of a dialect's are followed at once by one automaton (Aho and Corasick, 1975): a
session keeps a number, its place in it, and each token costs one look-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum

__all__ = ["NO_PARTIAL_MATCH", "MarkerKind", "MarkerMatcher", "TokenIds"]

TokenIds = tuple[int, ...]
NO_PARTIAL_MATCH = 0
"""The place where no marker has begun."""


class MarkerKind(Enum):
    """What a marker does. ``BREAK`` ends a trace too, but belongs to what follows: a tool call
    in the midst of thinking, which the engine's parser takes for the end."""

    START = "start"
    END = "end"
    BREAK = "break"


class MarkerMatcher:
    """The markers of one dialect in one model's ids. Shared by sessions; it does not change.

    ``known`` is what it was made of. ``beginnings`` are the ids that a marker begins with: nowhere,
    no other id matters.
    """

    def __init__(self, markers: Mapping[TokenIds, MarkerKind]) -> None:
        self.markers = dict(markers)
        self._transitions: list[dict[int, int]] = [{}]
        self._partial_lengths = [0]
        self._complete_matches: list[tuple[MarkerKind, int] | None] = [None]
        for ids, mark in markers.items():
            self._add(ids, mark)
        self.first_ids = frozenset(self._transitions[NO_PARTIAL_MATCH])
        self._link_suffixes()
        self._markers_by_last_id: dict[int, list[tuple[TokenIds, MarkerKind]]] = {}
        for ids in sorted(markers, key=len, reverse=True):
            self._markers_by_last_id.setdefault(ids[-1], []).append((ids, markers[ids]))

    def _add(self, ids: TokenIds, mark: MarkerKind) -> None:
        place = NO_PARTIAL_MATCH
        for count, token in enumerate(ids):
            if token not in self._transitions[place]:
                self._transitions[place][token] = len(self._transitions)
                self._transitions.append({})
                self._complete_matches.append(None)
                self._partial_lengths.append(0)
            if place != NO_PARTIAL_MATCH:
                self._partial_lengths[place] = count
            place = self._transitions[place][token]
        self._complete_matches[place] = (mark, len(ids))

    def _link_suffixes(self) -> None:
        """Give each place what its longest other ending knows, nearest places first."""
        shorter = [NO_PARTIAL_MATCH] * len(self._transitions)
        queue = deque(self._transitions[NO_PARTIAL_MATCH].values())
        while queue:
            place = queue.popleft()
            other = shorter[place]
            for token, following in self._transitions[place].items():
                shorter[following] = self._transitions[other].get(token, NO_PARTIAL_MATCH)
                queue.append(following)
            self._transitions[place] = self._transitions[other] | self._transitions[place]
            self._complete_matches[place] = (
                self._complete_matches[place] or self._complete_matches[other]
            )
            self._partial_lengths[place] = (
                self._partial_lengths[place] or self._partial_lengths[other]
            )

    def advance(self, state: int, token_id: int) -> int:
        """The place behind this token."""
        return self._transitions[state].get(token_id, NO_PARTIAL_MATCH)

    def complete_match(self, state: int) -> tuple[MarkerKind, int] | None:
        """The longest marker that is whole here, and of how many ids it is."""
        return self._complete_matches[state]

    def partial_length(self, state: int) -> int:
        """How many of the latest ids may be the beginning of a marker."""
        return self._partial_lengths[state]

    def last_kind(self, ids: Sequence[int]) -> MarkerKind | None:
        """What the last marker among ``ids`` does."""
        for end in range(len(ids), 0, -1):
            for marker, mark in self._markers_by_last_id.get(ids[end - 1], ()):
                if tuple(ids[max(0, end - len(marker)) : end]) == marker:
                    return mark
        return None

    def lengths_of(self, kind: MarkerKind) -> set[int]:
        """Of how many ids the markers that do this are."""
        return {
            found[1] for found in self._complete_matches if found is not None and found[0] is kind
        }

    def trim_after_end(self, ids: TokenIds) -> TokenIds:
        """``ids`` up to the first end marker, that included; all of them where there is none."""
        place = NO_PARTIAL_MATCH
        for count, token in enumerate(ids, 1):
            place = self.advance(place, token)
            found = self.complete_match(place)
            if found is not None and found[0] is MarkerKind.END:
                return ids[:count]
        return ids
