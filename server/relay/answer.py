"""The stream behind a cut: an answer, and what is known of it while it comes."""

from __future__ import annotations

import httpx

from adjourn.policies.text.markers import NO_PARTIAL_MATCH, MarkerKind, MarkerMatcher, TokenIds
from adjourn.server.relay.continuation import Continuation
from adjourn.server.stream.chunk import Chunk

__all__ = ["AnswerContinuation"]


class AnswerContinuation(Continuation):
    """``ids`` are what the client got of it. ``held``: events that may be the beginning of a
    trace that is opened again, with what they say; ``marker``: the ids that opened it."""

    def __init__(self, response: httpx.Response, prompt: list[int]) -> None:
        super().__init__(response, prompt)
        self.sent_ids: list[int] = []
        self.held_events: list[tuple[bytes, Chunk | None]] = []
        self.closing_pending = True
        self.is_scanning = True
        self.start_marker: TokenIds = ()
        self._matcher_state = NO_PARTIAL_MATCH

    @property
    def held_ids(self) -> list[int]:
        return [token for _, chunk in self.held_events for token in _token_ids(chunk)]

    def scan_for_start_marker(self, chunk: Chunk, matcher: MarkerMatcher) -> int:
        """How many of the latest ids may open a trace, now that ``chunk`` is held; where
        ``marker`` is set, they do."""
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
        """The events that hold none of the latest ids; they are held no longer."""
        count = len(self.held_events)
        while hold_ids > 0 and count:
            count -= 1
            hold_ids -= len(_token_ids(self.held_events[count][1]))
        freed, self.held_events = self.held_events[:count], self.held_events[count:]
        return freed


def _token_ids(chunk: Chunk | None) -> list[int]:
    return [] if chunk is None else [i for c in chunk.choices for i in c.token_ids or ()]
