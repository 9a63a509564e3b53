"""Where a trace starts and ends in the generated ids, and how its last chunk is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adjourn.policies.session.ledger import Ledger
from adjourn.policies.text.markers import NO_PARTIAL_MATCH, MarkerKind, MarkerMatcher

__all__ = ["EndMarker", "TraceBounds", "count_last_chunk"]


@dataclass(frozen=True, slots=True)
class EndMarker:
    """A marker of ``length`` ids that ends the trace, seen in the trace's last chunk.

    ``ids_before``: ids of that chunk that belong to the trace; negative if the marker began in an
    earlier chunk. ``ids_after``: ids of that chunk after the marker.
    """

    kind: MarkerKind
    length: int
    ids_before: int
    ids_after: int


class TraceBounds:
    """Finds complete markers in the generated ids, even if they are split between chunks.

    state            content                                              changed by
    ---------------  ---------------------------------------------------  -------------------
    marker_state     the matcher's state after the ids read so far        scan; Session sets it
                                                                          back to read a chunk again
    """

    __slots__ = ("_matcher", "marker_state")

    def __init__(self, matcher: MarkerMatcher) -> None:
        self._matcher = matcher
        self.marker_state = NO_PARTIAL_MATCH

    @property
    def partial_length(self) -> int:
        """How many of the last ids may be the beginning of a marker."""
        return self._matcher.partial_length(self.marker_state)

    def is_open_after(self, prompt: Sequence[int]) -> bool:
        """Whether the last marker among the prompt's ids opens a trace."""
        return self._matcher.last_kind(prompt) is MarkerKind.START

    def scan(
        self, token_ids: Sequence[int], *, is_open: bool, is_empty: bool
    ) -> tuple[int, EndMarker | None]:
        """Return how many of these ids open the trace, and the marker that ends it.

        ``is_open``: the trace was open before; ``is_empty``: and has no tokens. Some models repeat
        the start marker after a prompt that ends with it; later ones belong to the trace.
        """
        opening, end = 0, None
        for count, token in enumerate(token_ids, 1):
            self.marker_state = self._matcher.advance(self.marker_state, token)
            if (found := self._matcher.complete_match(self.marker_state)) is None:
                continue
            kind, length = found
            if kind is not MarkerKind.START:
                end = EndMarker(kind, length, count - opening - length, len(token_ids) - count)
                self.marker_state = NO_PARTIAL_MATCH
                break
            opens = not is_open or (count == length and is_empty)
            if opens and not opening:
                opening, self.marker_state = count, NO_PARTIAL_MATCH
        return opening, end


def count_last_chunk(
    ledger: Ledger, count: int, end: EndMarker | None, *, is_open: bool, answering: bool
) -> None:
    """Divide the ``count`` ids of a trace's last chunk between trace, marker and answer.

    ``is_open``: there was a trace at all; ``answering``: the chunk has answer text.
    """
    if not is_open:
        ledger.answer += count
    elif end is not None:
        ledger.reasoning += end.ids_before
        ledger.answer += count - end.ids_before
        if end.kind is MarkerKind.END:
            ledger.marker += end.length
            ledger.answer -= end.length
    elif answering:
        ledger.answer += count
    else:
        ledger.reasoning += count
