"""Markers are found however the ids are chunked, compared with a search over all ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.text.markers import NO_PARTIAL_MATCH, MarkerKind, MarkerMatcher, TokenIds

FEW = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
MARKERS = st.dictionaries(FEW, st.sampled_from(MarkerKind), min_size=1, max_size=6)
STREAM = st.lists(st.integers(1, 4), max_size=40)


def longest(markers: dict[TokenIds, MarkerKind], ids: list[int]) -> tuple[MarkerKind, int] | None:
    """The longest marker that these ids end with."""
    ends = [m for m in markers if tuple(ids[-len(m) :]) == m]
    found = max(ends, key=len, default=None)
    return None if found is None else (markers[found], len(found))


@given(markers=MARKERS, stream=STREAM)
def test_each_marker_is_found_where_it_ends(
    markers: dict[TokenIds, MarkerKind], stream: list[int]
) -> None:
    """After each token, the automaton agrees with a search over all ids so far."""
    automaton, place = MarkerMatcher(markers), NO_PARTIAL_MATCH
    for count, token in enumerate(stream, 1):
        place = automaton.advance(place, token)
        assert automaton.complete_match(place) == longest(markers, stream[:count])


@given(markers=MARKERS, stream=STREAM)
def test_the_partial_length_is_exact(
    markers: dict[TokenIds, MarkerKind], stream: list[int]
) -> None:
    """The number of latest ids that are the first ids of a marker, but not all of it."""
    automaton, place = MarkerMatcher(markers), NO_PARTIAL_MATCH
    for count, token in enumerate(stream, 1):
        place = automaton.advance(place, token)
        tails = [tuple(stream[count - n : count]) for n in range(1, min(count, 4) + 1)]
        begun = [len(t) for m in markers for t in tails if m[: len(t)] == t != m]
        assert automaton.partial_length(place) == max(begun, default=0)


@given(markers=MARKERS, stream=STREAM)
def test_other_ids_leave_the_initial_state(
    markers: dict[TokenIds, MarkerKind], stream: list[int]
) -> None:
    """Without a partial match, an id that begins no marker changes nothing: the fast path may skip
    it."""
    automaton = MarkerMatcher(markers)
    for token in stream:
        assert (automaton.advance(NO_PARTIAL_MATCH, token) != NO_PARTIAL_MATCH) == (
            token in automaton.first_ids
        )


@given(markers=MARKERS, stream=STREAM)
def test_the_last_marker_of_a_prompt(
    markers: dict[TokenIds, MarkerKind], stream: list[int]
) -> None:
    """The last marker, and of those that end there the longest."""
    found = [longest(markers, stream[:end]) for end in range(1, len(stream) + 1)]
    last = next((mark for mark in reversed(found) if mark is not None), None)
    assert MarkerMatcher(markers).last_kind(stream) == (last[0] if last else None)


@pytest.mark.parametrize("stream", [[], [9], [9] * 1000])
def test_ids_without_a_marker(stream: list[int]) -> None:
    """There is no last kind."""
    assert MarkerMatcher({(1, 2): MarkerKind.START}).last_kind(stream) is None
