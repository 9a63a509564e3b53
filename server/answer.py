"""The stream behind a cut: an answer, and what is known of it while it comes."""

from __future__ import annotations

import httpx

from policies.markers import NOWHERE, Ids, Mark, Markers
from server.continuation import Continuation
from server.wire import Chunk

__all__ = ["Answer"]


class Answer(Continuation):
    """``ids`` are what the client got of it. ``held``: events that may be the beginning of a
    trace that is opened again, with what they say; ``marker``: the ids that opened it."""

    def __init__(self, response: httpx.Response, prompt: list[int]) -> None:
        super().__init__(response, prompt)
        self.ids: list[int] = []
        self.held: list[tuple[bytes, Chunk | None]] = []
        self.closing_due = True
        self.watched = True
        self.marker: Ids = ()
        self._at = NOWHERE

    @property
    def held_ids(self) -> list[int]:
        return [token for _, chunk in self.held for token in _ids(chunk)]

    def watch(self, chunk: Chunk, markers: Markers) -> int:
        """How many of the latest ids may open a trace, now that ``chunk`` is held; where
        ``marker`` is set, they do."""
        ids = self.held_ids
        for end in range(len(ids) - len(_ids(chunk)) + 1, len(ids) + 1):
            self._at = markers.step(self._at, ids[end - 1])
            found = markers.whole(self._at)
            if found is not None and found[0] is Mark.START:
                begin = end - found[1]
                self.marker = tuple(ids[begin:end])
                return len(ids) - begin
        return markers.begun(self._at)

    def free(self, latest: int) -> list[tuple[bytes, Chunk | None]]:
        """The events that hold none of the latest ids; they are held no longer."""
        count = len(self.held)
        while latest > 0 and count:
            count -= 1
            latest -= len(_ids(self.held[count][1]))
        freed, self.held = self.held[:count], self.held[count:]
        return freed


def _ids(chunk: Chunk | None) -> list[int]:
    return [] if chunk is None else [i for c in chunk.choices for i in c.token_ids or ()]
