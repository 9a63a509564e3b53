"""What an endpoint is to the relay: how it is asked, what its chunks say, what its client sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from msgspec import Raw

from adjourn.policies.session.orders import InsertedText
from adjourn.server.api.request import ParsedRequest
from adjourn.server.stream.chunk import Choice, Chunk, Fields, with_logit_bias

__all__ = ["NO_EXTRAS", "Endpoint", "Fields", "OpenAIEndpoint", "PolicyExtras"]

_SHARED_FIELDS = ("cache_salt", "priority")


@dataclass(frozen=True, slots=True)
class PolicyExtras:
    """What a policy wants of the main stream, on top of what the client asks for: the
    log-probabilities of so many tokens with each one, and ``bias`` on the logit of ``end``."""

    logprobs: int = 0
    bias: float = 0.0
    end_token: int = 0


NO_EXTRAS = PolicyExtras()


class Endpoint(Protocol):
    """One choice of a response, in the shape of one endpoint."""

    path: ClassVar[str]
    """Where the main stream and the answer behind a cut are asked for."""

    token_limit: int | None
    """Tokens that the client lets the whole response have."""

    @property
    def main_fields(self) -> Fields:
        """The main stream's request."""

    @property
    def shared_fields(self) -> Fields:
        """What must be the same on all calls of a request, or the prefix cache is missed."""

    def answer_fields(self, prompt: Sequence[int], max_tokens: int | None) -> Fields:
        """The request for an answer from these ids, of ``left`` tokens where that is limited."""

    def continuation_fields(
        self, prompt: Sequence[int], max_tokens: int | None, bias: float | None
    ) -> Fields:
        """The same for the main stream, which goes on from these ids; ``bias`` is wanted from now
        on, where one is given."""

    def decode(self, data: bytes, /) -> Chunk:
        """Raises msgspec.MsgspecError where the bytes are no chunk."""

    def has_answer(self, choice: Choice) -> bool:
        """Whether an answer or a tool call has begun."""

    def logprobs_of(self, choice: Choice) -> Sequence[Sequence[float]]:
        """What a chunk says of log-probabilities, highest first: one list a token, or none at
        all."""

    def render_inserted_text(self, first_chunk: Chunk, inserted: InsertedText) -> bytes:
        """An event that brings a text as the trace's own, in the stream that began with
        ``first``."""

    def render_event(self, event: bytes, chunk: Chunk) -> bytes | None:
        """The event as the client is to get it; None where it gets none. Called once for each
        event that the client is to get, in order."""

    def trim_to_trace(self, event: bytes, keep_ids: int) -> bytes | None:
        """What an event says within the trace, of its first ``kept`` tokens; None if nothing."""

    def prepend_closing(self, event: bytes, choice: Choice, closing: Sequence[int]) -> bytes:
        """The answer's first event, which brings ``choice``, with the closing sequence where the
        client sees such things."""

    def carries_summary(self, chunk: Chunk, choice: Choice | None) -> bool:
        """Whether the chunk is the one that the note stands on: one that ends a choice, or that
        has none."""


class OpenAIEndpoint:
    """What OpenAI's two endpoints have in common: one choice of them, the ``choice``-th of ``n``.

    ``apart``: the client's stop strings are for the answer's own call. ``asking``: what an engine
    is asked for on top of what the client asks for, so that its stream tells all that is to be
    known.
    """

    path: ClassVar[str]
    extra_fields: ClassVar[Fields]

    def __init__(
        self, request: ParsedRequest, choice: int, extras: PolicyExtras, separate_answer: bool
    ) -> None:
        self.token_limit = request.token_limit
        self._model = request.model
        self._extras = extras
        self._fields = dict(request.fields)
        self._stop = self._fields.pop("stop", None) if separate_answer else None
        self._hide_ids = not request.return_token_ids
        self._summary_in_usage_chunk = request.include_usage or not request.stream
        self._fields |= {"stream": Raw(b"true"), **self.extra_fields}
        if not request.stream:
            self._fields["stream_options"] = Raw(b'{"include_usage":true}')
        if request.num_choices > 1:
            del self._fields["n"]
        if choice and request.seed is not None:
            # What the engine gives the choices of one request: each the next seed.
            self._fields["seed"] = Raw(b"%d" % (request.seed + choice))

    @property
    def main_fields(self) -> Fields:
        fields, wanted = self._fields, self._extras
        if wanted.logprobs:
            fields = fields | self._logprobs_fields(wanted.logprobs)
        if wanted.bias:
            biases = fields.get("logit_bias", Raw(b"{}"))
            fields = fields | {"logit_bias": with_logit_bias(biases, wanted.end_token, wanted.bias)}
        return fields

    @property
    def shared_fields(self) -> Fields:
        return {key: value for key, value in self._fields.items() if key in _SHARED_FIELDS}

    def answer_fields(self, prompt: Sequence[int], max_tokens: int | None) -> Fields:
        fields = self._fields if self._stop is None else {**self._fields, "stop": self._stop}
        return fields | self._resume_fields(prompt, max_tokens)

    def continuation_fields(
        self, prompt: Sequence[int], max_tokens: int | None, bias: float | None
    ) -> Fields:
        if bias is not None:
            self._extras = replace(self._extras, bias=bias)
        return self.main_fields | self._resume_fields(prompt, max_tokens)

    def carries_summary(self, chunk: Chunk, choice: Choice | None) -> bool:
        if self._summary_in_usage_chunk:
            return choice is None and chunk.usage is not None
        return choice is not None and choice.finish_reason is not None

    def _logprobs_fields(self, count: int) -> Fields:
        """The fields that ask for at least so many."""
        raise NotImplementedError

    def _resume_fields(self, prompt: Sequence[int], max_tokens: int | None) -> Fields:
        """The fields that ask for a stream from these ids, of ``left`` tokens."""
        fields = self.prompt_fields(prompt)
        if max_tokens is not None:
            fields |= dict.fromkeys(self._limit_names, Raw(b"%d" % max_tokens))
        return fields

    @staticmethod
    def prompt_fields(prompt: Sequence[int]) -> Fields:
        """What has an engine go on from these ids."""
        raise NotImplementedError

    @property
    def _limit_names(self) -> Sequence[str]:
        """The fields that limit a response's tokens."""
        raise NotImplementedError
