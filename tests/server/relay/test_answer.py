"""A start marker in an answer is found, however many tokens and chunks it takes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.text.markers import MarkerKind, MarkerMatcher
from adjourn.server.relay.answer import AnswerContinuation
from adjourn.server.stream.chunk import Choice, Chunk

MARKERS = MarkerMatcher(
    {(1, 2, 3): MarkerKind.START, (9, 1, 2, 3): MarkerKind.START, (1, 4): MarkerKind.END}
)


class Silent(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b""


def told(ids: Sequence[int], sizes: Sequence[int]) -> tuple[AnswerContinuation, list[int]]:
    """An answer that brought these ids in chunks of these sizes, and the ids that were released."""
    answer = AnswerContinuation(httpx.Response(200, stream=Silent()), [])
    shown: list[int] = []
    rest, turn = list(ids), 0
    while rest and not answer.start_marker:
        size = sizes[turn % len(sizes)]
        piece, rest, turn = rest[:size], rest[size:], turn + 1
        chunk = Chunk(choices=[Choice(token_ids=piece)])
        answer.held_events.append((b"", chunk))
        for _, free in answer.release_held(answer.scan_for_start_marker(chunk, MARKERS)):
            shown += free.choices[0].token_ids or () if free else ()
    return answer, shown


@pytest.mark.parametrize("marker", [(1, 2, 3), (9, 1, 2, 3)])
@given(
    before=st.lists(st.sampled_from([5, 6, 1, 4]), max_size=6).filter(lambda x: x[-1:] != [1]),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
)
def test_no_part_of_a_marker_is_released(
    marker: tuple[int, ...], before: list[int], sizes: list[int]
) -> None:
    """Nor the rest of the chunk in which it begins; everything before it is released."""
    answer, shown = told([*before, *marker, 7, 7], sizes)
    assert answer.start_marker == marker
    assert shown == before[: len(shown)]
    assert [*shown, *answer.held_ids][: len(before) + len(marker)] == [*before, *marker]
    assert len(before) - len(shown) < max(sizes)


@given(
    ids=st.lists(st.sampled_from([5, 6, 1, 2, 4]), max_size=9),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
)
def test_other_ids_are_released(ids: list[int], sizes: list[int]) -> None:
    """At most the ids that may still become a marker are held."""
    answer, shown = told(ids, sizes)
    assert not answer.start_marker
    assert [*shown, *answer.held_ids] == ids


def test_a_chunk_without_ids_changes_nothing() -> None:
    """It waits for the chunks before it."""
    answer, _ = told([5, 1], [1])
    answer.held_events.append((b"", Chunk(choices=[Choice()])))
    assert answer.scan_for_start_marker(Chunk(choices=[Choice()]), MARKERS) == 1
    assert answer.held_ids == [1]
