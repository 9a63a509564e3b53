"""What an endpoint is to the relay: how it is asked, what its chunks say, what its client sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from msgspec import Raw

from policies.orders import Said
from server.choose import Asked
from server.wire import Choice, Chunk, Fields, with_bias

__all__ = ["NOTHING", "Fields", "OpenAI", "Surface", "Wanted"]

_STICKY = ("cache_salt", "priority")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a policy wants of the main stream, on top of what the client asks for: the
    log-probabilities of so many tokens with each one, and ``bias`` on the logit of ``end``."""

    logprobs: int = 0
    bias: float = 0.0
    end: int = 0


NOTHING = Wanted()


class Surface(Protocol):
    """One choice of a response, in the shape of one endpoint."""

    path: ClassVar[str]
    """Where the main stream and the answer behind a cut are asked for."""

    limit: int | None
    """Tokens that the client lets the whole response have."""

    @property
    def fields(self) -> Fields:
        """The main stream's request."""

    @property
    def sticky(self) -> Fields:
        """What must be the same on all calls of a request, or the prefix cache is missed."""

    def answer(self, prompt: Sequence[int], left: int | None) -> Fields:
        """The request for an answer from these ids, of ``left`` tokens where that is limited."""

    def more(self, prompt: Sequence[int], left: int | None, bias: float | None) -> Fields:
        """The same for the main stream, which goes on from these ids; ``bias`` is wanted from now
        on, where one is given."""

    def decode(self, data: bytes, /) -> Chunk:
        """Raises msgspec.MsgspecError where the bytes are no chunk."""

    def answers(self, choice: Choice) -> bool:
        """Whether an answer or a tool call has begun."""

    def told(self, choice: Choice) -> Sequence[Sequence[float]]:
        """What a chunk says of log-probabilities, highest first: one list a token, or none at
        all."""

    def said(self, first: Chunk, said: Said) -> bytes:
        """An event that brings a text as the trace's own, in the stream that began with
        ``first``."""

    def shown(self, event: bytes, chunk: Chunk) -> bytes | None:
        """The event as the client is to get it; None where it gets none. Called once for each
        event that the client is to get, in order."""

    def edge(self, event: bytes, kept: int) -> bytes | None:
        """What an event says within the trace, of its first ``kept`` tokens; None if nothing."""

    def closed(self, event: bytes, choice: Choice, closing: Sequence[int]) -> bytes:
        """The answer's first event, which brings ``choice``, with the closing sequence where the
        client sees such things."""

    def is_last(self, chunk: Chunk, choice: Choice | None) -> bool:
        """Whether the chunk is the one that the note stands on: one that ends a choice, or that
        has none."""


class OpenAI:
    """What OpenAI's two endpoints have in common: one choice of them, the ``choice``-th of ``n``.

    ``apart``: the client's stop strings are for the answer's own call. ``asking``: what an engine
    is asked for on top of what the client asks for, so that its stream tells all that is to be
    known.
    """

    path: ClassVar[str]
    asking: ClassVar[Fields]

    def __init__(self, request: Asked, choice: int, wanted: Wanted, apart: bool) -> None:
        self.limit = request.limit
        self._model = request.model
        self._wanted = wanted
        self._fields = dict(request.fields)
        self._stop = self._fields.pop("stop", None) if apart else None
        self._hide_ids = not request.return_token_ids
        self._note_on_usage = request.include_usage or not request.stream
        self._fields |= {"stream": Raw(b"true"), **self.asking}
        if not request.stream:
            self._fields["stream_options"] = Raw(b'{"include_usage":true}')
        if request.choices > 1:
            del self._fields["n"]
        if choice and request.seed is not None:
            # What the engine gives the choices of one request: each the next seed.
            self._fields["seed"] = Raw(b"%d" % (request.seed + choice))

    @property
    def fields(self) -> Fields:
        fields, wanted = self._fields, self._wanted
        if wanted.logprobs:
            fields = fields | self._with_logprobs(wanted.logprobs)
        if wanted.bias:
            biases = fields.get("logit_bias", Raw(b"{}"))
            fields = fields | {"logit_bias": with_bias(biases, wanted.end, wanted.bias)}
        return fields

    @property
    def sticky(self) -> Fields:
        return {key: value for key, value in self._fields.items() if key in _STICKY}

    def answer(self, prompt: Sequence[int], left: int | None) -> Fields:
        fields = self._fields if self._stop is None else {**self._fields, "stop": self._stop}
        return fields | self._behind(prompt, left)

    def more(self, prompt: Sequence[int], left: int | None, bias: float | None) -> Fields:
        if bias is not None:
            self._wanted = replace(self._wanted, bias=bias)
        return self.fields | self._behind(prompt, left)

    def is_last(self, chunk: Chunk, choice: Choice | None) -> bool:
        if self._note_on_usage:
            return choice is None and chunk.usage is not None
        return choice is not None and choice.finish_reason is not None

    def _with_logprobs(self, number: int) -> Fields:
        """The fields that ask for at least so many."""
        raise NotImplementedError

    def _behind(self, prompt: Sequence[int], left: int | None) -> Fields:
        """The fields that ask for a stream from these ids, of ``left`` tokens."""
        fields = self.resuming(prompt)
        if left is not None:
            fields |= dict.fromkeys(self._limits, Raw(b"%d" % left))
        return fields

    @staticmethod
    def resuming(prompt: Sequence[int]) -> Fields:
        """What has an engine go on from these ids."""
        raise NotImplementedError

    @property
    def _limits(self) -> Sequence[str]:
        """The fields that limit a response's tokens."""
        raise NotImplementedError
