"""What an endpoint is to the relay: how it is asked, what its chunks say, what its client sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Raw

from server.wire import Choice, Chunk

__all__ = ["Fields", "Surface"]

Fields = dict[str, Raw]
"""A request's top-level values, as the bytes they were written in."""


class Surface(Protocol):
    """One choice of a response, in the shape of one endpoint."""

    path: str
    """Where the main stream and the answer behind a cut are asked for."""

    fields: Fields
    """The main stream's request."""

    limit: int | None
    """Tokens that the client lets the whole response have."""

    @property
    def sticky(self) -> Fields:
        """What must be the same on all calls of a request, or the prefix cache is missed."""

    def answer(self, prompt: Sequence[int], left: int | None) -> Fields:
        """The request for an answer from these ids, of ``left`` tokens where that is limited."""

    def decode(self, data: bytes) -> Chunk:
        """Raises msgspec.MsgspecError where the bytes are no chunk."""

    def answers(self, choice: Choice) -> bool:
        """Whether an answer or a tool call has begun."""

    def shown(self, event: bytes, chunk: Chunk) -> bytes | None:
        """The event as the client is to get it; None where it gets none. Called once for each
        event that the client is to get, in order."""

    def edge(self, event: bytes, kept: int) -> bytes | None:
        """What an event says within the trace, of its first ``kept`` tokens; None if nothing."""

    def closed(self, event: bytes, choice: Choice, closing: Sequence[int]) -> bytes:
        """The answer's first event, which brings ``choice``, with the closing sequence where the
        client sees such things."""

    def is_last(self, chunk: Chunk, choice: Choice | None) -> bool:
        """Whether the chunk is the one that the note stands on."""
