"""The stream of an answer after a cut, watched for a start marker that opens a trace again."""

from __future__ import annotations

from adjourn.policies.text.markers import NO_PARTIAL_MATCH, MarkerKind, MarkerMatcher, TokenIds
from adjourn.server.relay.continuation import Continuation
from adjourn.server.stream.chunk import Chunk
from adjourn.server.upstream import http

__all__ = ["AnswerContinuation"]


class AnswerContinuation(Continuation):
    """An answer being read.

    state            content                                                  changed by
    ---------------  -------------------------------------------------------  ----------------------
    sent_ids         the ids of the answer that the client got                AnswerStream
    held_events      events, with their chunks, that may be the beginning     AnswerStream,
                     of a start marker                                        release_held
    closing_pending  the client has not seen the closing sequence yet         AnswerStream
    is_scanning      start markers are still looked for                       AnswerStream
    start_marker     the ids of a start marker that was found; else ()        scan_for_start_marker
    _matcher_state   the marker automaton's state after the latest id         scan_for_start_marker
    """

    def __init__(self, response: http.Response, prompt: list[int]) -> None:
        super().__init__(response, prompt)
        self.sent_ids: list[int] = []
        self.held_events: list[tuple[bytes, Chunk | None]] = []
        self.closing_pending = True
        self.is_scanning = True
        self.start_marker: TokenIds = ()
        self._matcher_state = NO_PARTIAL_MATCH

    @property
    def held_ids(self) -> list[int]:
        """The token ids of the held events."""
        return [token for _, chunk in self.held_events for token in _token_ids(chunk)]

    def scan_for_start_marker(self, chunk: Chunk, matcher: MarkerMatcher) -> int:
        """Read the ids of ``chunk``, the latest held event.

        Returns how many of the latest ids may begin a start marker. Sets ``start_marker`` if one is
        complete.
        """
        ids = self.held_ids
        for end in range(len(ids) - len(_token_ids(chunk)) + 1, len(ids) + 1):
            self._matcher_state = matcher.advance(self._matcher_state, ids[end - 1])
            found = matcher.complete_match(self._matcher_state)
            if found is not None and found[0] is MarkerKind.START:
                begin = end - found[1]
                self.start_marker = tuple(ids[begin:end])
                return len(ids) - begin
        return matcher.partial_length(self._matcher_state)

    def release_held(self, hold_ids: int) -> list[tuple[bytes, Chunk | None]]:
        """Remove and return the held events that have none of the latest ``hold_ids`` ids."""
        count = len(self.held_events)
        while hold_ids > 0 and count:
            count -= 1
            hold_ids -= len(_token_ids(self.held_events[count][1]))
        freed, self.held_events = self.held_events[:count], self.held_events[count:]
        return freed


def _token_ids(chunk: Chunk | None) -> list[int]:
    return [] if chunk is None else [i for c in chunk.choices for i in c.token_ids or ()]
