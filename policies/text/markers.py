"""Find a dialect's markers in a stream of token ids, however it is chunked.

A marker may be several tokens ("<|channel|>", "analysis", "<|message|>"), and one may begin within
another. One automaton (Aho and Corasick, 1975) follows all markers of a dialect at once: a session
keeps its state, a number, and each token costs one dictionary look-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum

__all__ = ["NO_PARTIAL_MATCH", "MarkerKind", "MarkerMatcher", "TokenIds"]

TokenIds = tuple[int, ...]
NO_PARTIAL_MATCH = 0
"""The state in which no marker has begun."""


class MarkerKind(Enum):
    """What a marker does. ``BREAK`` ends the trace and belongs to what follows: a tool call within
    the reasoning, which the engine's parser takes for the end of it."""

    START = "start"
    END = "end"
    BREAK = "break"


class MarkerMatcher:
    """The markers of one dialect in one model's ids. Immutable, shared by all sessions.

    ``markers``: the mapping it was made of. ``first_ids``: the first id of each marker; in the
    state ``NO_PARTIAL_MATCH`` all other ids leave the state as it is.
    """

    def __init__(self, markers: Mapping[TokenIds, MarkerKind]) -> None:
        self.markers = dict(markers)
        self._transitions: list[dict[int, int]] = [{}]
        self._partial_lengths = [0]
        self._complete_matches: list[tuple[MarkerKind, int] | None] = [None]
        for ids, kind in markers.items():
            self._add(ids, kind)
        self.first_ids = frozenset(self._transitions[NO_PARTIAL_MATCH])
        self._link_suffixes()
        self._markers_by_last_id: dict[int, list[tuple[TokenIds, MarkerKind]]] = {}
        for ids in sorted(markers, key=len, reverse=True):
            self._markers_by_last_id.setdefault(ids[-1], []).append((ids, markers[ids]))

    def _add(self, ids: TokenIds, kind: MarkerKind) -> None:
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
        self._complete_matches[place] = (kind, len(ids))

    def _link_suffixes(self) -> None:
        """Give each state what its longest proper suffix knows, shorter states first."""
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
        """The state after this token."""
        return self._transitions[state].get(token_id, NO_PARTIAL_MATCH)

    def complete_match(self, state: int) -> tuple[MarkerKind, int] | None:
        """(kind, number of ids) of the longest marker that is complete in this state."""
        return self._complete_matches[state]

    def partial_length(self, state: int) -> int:
        """How many of the latest ids may be the beginning of a marker."""
        return self._partial_lengths[state]

    def last_kind(self, ids: Sequence[int]) -> MarkerKind | None:
        """The kind of the last marker in ``ids``; None if there is none."""
        for end in range(len(ids), 0, -1):
            for marker, kind in self._markers_by_last_id.get(ids[end - 1], ()):
                if tuple(ids[max(0, end - len(marker)) : end]) == marker:
                    return kind
        return None

    def lengths_of(self, kind: MarkerKind) -> set[int]:
        """The lengths, in ids, of the markers of this kind."""
        return {
            found[1] for found in self._complete_matches if found is not None and found[0] is kind
        }

    def trim_after_end(self, ids: TokenIds) -> TokenIds:
        """``ids`` up to and including the first end marker; all of them if there is none."""
        place = NO_PARTIAL_MATCH
        for count, token in enumerate(ids, 1):
            place = self.advance(place, token)
            found = self.complete_match(place)
            if found is not None and found[0] is MarkerKind.END:
                return ids[:count]
        return ids
