"""Markers are found wherever the chunks end, against a search that looks at everything again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.markers import NOWHERE, Ids, Mark, Markers

FEW = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
MARKERS = st.dictionaries(FEW, st.sampled_from(Mark), min_size=1, max_size=6)
STREAM = st.lists(st.integers(1, 4), max_size=40)


def longest(markers: dict[Ids, Mark], ids: list[int]) -> tuple[Mark, int] | None:
    """The longest marker that these ids end with."""
    ends = [m for m in markers if tuple(ids[-len(m) :]) == m]
    found = max(ends, key=len, default=None)
    return None if found is None else (markers[found], len(found))


@given(markers=MARKERS, stream=STREAM)
def test_each_marker_is_found_where_it_ends(markers: dict[Ids, Mark], stream: list[int]) -> None:
    """Token by token, the automaton knows what a search over all ids so far finds."""
    automaton, place = Markers(markers), NOWHERE
    for count, token in enumerate(stream, 1):
        place = automaton.step(place, token)
        assert automaton.whole(place) == longest(markers, stream[:count])


@given(markers=MARKERS, stream=STREAM)
def test_a_beginning_is_seen(markers: dict[Ids, Mark], stream: list[int]) -> None:
    """A marker may have begun exactly where the last ids are the first of one, but not all."""
    automaton, place = Markers(markers), NOWHERE
    for count, token in enumerate(stream, 1):
        place = automaton.step(place, token)
        tails = [tuple(stream[count - n : count]) for n in range(1, min(count, 4) + 1)]
        begun = any(m[: len(tail)] == tail != m for m in markers for tail in tails)
        assert automaton.begun(place) == begun


@given(markers=MARKERS, stream=STREAM)
def test_nothing_begins_but_with_a_beginning(markers: dict[Ids, Mark], stream: list[int]) -> None:
    """Nowhere, an id that no marker begins with leads nowhere: a quick path may pass over it."""
    automaton = Markers(markers)
    for token in stream:
        assert (automaton.step(NOWHERE, token) != NOWHERE) == (token in automaton.beginnings)


@given(markers=MARKERS, stream=STREAM)
def test_the_last_marker_is_found_from_behind(markers: dict[Ids, Mark], stream: list[int]) -> None:
    """The prompt's last marker, and of those that end there the longest."""
    found = [longest(markers, stream[:end]) for end in range(1, len(stream) + 1)]
    last = next((mark for mark in reversed(found) if mark is not None), None)
    assert Markers(markers).last(stream) == (last[0] if last else None)


@pytest.mark.parametrize("stream", [[], [9], [9] * 1000])
def test_no_marker_is_none(stream: list[int]) -> None:
    """Ids without a marker say nothing."""
    assert Markers({(1, 2): Mark.START}).last(stream) is None
