"""The stream behind a cut: an answer, and what is known of it while it comes."""

from __future__ import annotations

import httpx

from policies.markers import NOWHERE, Ids, Mark, Markers
from server.continuation import Continuation
from server.wire import Chunk

__all__ = ["Answer"]


class Answer(Continuation):
    """``ids`` are what the client got of it. ``held``: events that may be the beginning of a
    trace that is opened again, with what they say."""

    def __init__(self, response: httpx.Response, prompt: list[int]) -> None:
        super().__init__(response, prompt)
        self.ids: list[int] = []
        self.held: list[tuple[bytes, Chunk | None]] = []
        self.closing_due = True
        self.watched = True
        self.marker: Ids = ()  # with which a trace was opened again
        self._at = NOWHERE

    @property
    def held_ids(self) -> list[int]:
        chunks = [chunk for _, chunk in self.held if chunk is not None]
        return [token for chunk in chunks for c in chunk.choices for token in c.token_ids or ()]

    def watch(self, chunk: Chunk, markers: Markers) -> bool:
        """Whether a trace may be opening with this chunk, the last of those held. With ``marker``
        it has."""
        ids = self.held_ids
        new = sum(len(choice.token_ids or ()) for choice in chunk.choices)
        for end in range(len(ids) - new + 1, len(ids) + 1):
            self._at = markers.step(self._at, ids[end - 1])
            found = markers.whole(self._at)
            if found is not None and found[0] is Mark.START:
                self.marker = tuple(ids[end - found[1] : end])
                return True
        return bool(new and markers.begun(self._at))
