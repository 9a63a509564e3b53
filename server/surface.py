"""What an endpoint is to the relay: how it is asked, what its chunks say, what its client sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec import Raw

from server.choose import Asked
from server.wire import Choice, Chunk

__all__ = ["Fields", "OpenAI", "Surface"]

_STICKY = ("cache_salt", "priority")

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


class OpenAI:
    """What OpenAI's two endpoints have in common: one choice of them, the ``choice``-th of ``n``.

    ``apart``: the client's stop strings are for the answer's own call. ``flags`` are asked for on
    top of what the client asks for.
    """

    def __init__(self, request: Asked, choice: int, apart: bool, *flags: str) -> None:
        self.limit = request.limit
        self.fields = dict(request.fields)
        self._stop = self.fields.pop("stop", None) if apart else None
        self._hide_ids = not request.return_token_ids
        self._note_on_usage = request.include_usage or not request.stream
        self.fields |= dict.fromkeys(("stream", "return_token_ids", *flags), Raw(b"true"))
        if not request.stream:
            self.fields["stream_options"] = Raw(b'{"include_usage":true}')
        self.fields.pop("n", None)
        if choice and request.seed is not None:
            # What the engine gives the choices of one request: each the next seed.
            self.fields["seed"] = Raw(b"%d" % (request.seed + choice))

    @property
    def sticky(self) -> Fields:
        return {key: value for key, value in self.fields.items() if key in _STICKY}

    def answering(self, **changed: object) -> Fields:
        """The answer's request: the main stream's, these fields changed."""
        fields = self.fields if self._stop is None else {**self.fields, "stop": self._stop}
        return fields | {key: Raw(msgspec.json.encode(value)) for key, value in changed.items()}

    def is_last(self, chunk: Chunk, choice: Choice | None) -> bool:
        if self._note_on_usage:
            return choice is None and chunk.usage is not None
        return choice is not None and choice.finish_reason is not None
