"""The requests of one relay to the engine, other than probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from adjourn.policies.session.orders import Cut, Reopen
from adjourn.policies.session.session import Session
from adjourn.server.api.endpoint import Endpoint, Fields
from adjourn.server.engines.adapter import Adapter
from adjourn.server.errors import GatewayError
from adjourn.server.relay.answer import AnswerContinuation
from adjourn.server.relay.continuation import Continuation
from adjourn.server.relay.times import Times
from adjourn.server.stream.chunk import Chunk
from adjourn.server.upstream import http
from adjourn.server.upstream.client import TRANSPORT_ERRORS, BadReply

__all__ = ["ContinuationRefused", "EngineCalls", "Headers"]

Headers = Sequence[tuple[bytes, bytes]]
_ContinuationT = TypeVar("_ContinuationT", bound=Continuation)


class ContinuationRefused(Exception):
    """The engine did not open a stream from a kept prefix, or did not end a trace in place.

    ``reason``: a label of ``adjourn_fail_open_total``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EngineCalls:
    """Opens the main stream and the streams that replace it.

    state                content                                              changed by
    -------------------  ---------------------------------------------------  -----------------
    first_chunk          the main stream's first chunk: its id and time are   Relay
                         the response's
    _continuation_count  reopened main streams so far, part of the next id    reopen
    _answer_count        answers requested so far, part of the next id        request_answer
    """

    def __init__(
        self,
        adapter: Adapter,
        endpoint: Endpoint,
        headers: Headers,
        request_id: str,
        model: str,
        times: Times,
    ) -> None:
        self.first_chunk = Chunk()
        self._adapter = adapter
        self._engine = adapter.engine
        self._endpoint = endpoint
        self._headers = headers
        self._request_id = request_id
        self._model = model
        self._times = times
        self._continuation_count = 0
        self._answer_count = 0

    @property
    def ends_in_place(self) -> bool:
        """Whether this engine ends a trace within the main stream."""
        return self._adapter.ends_in_place

    @property
    def closes_escapes(self) -> bool:
        """Whether a trace that an answer opens again is closed (setting ``end_escapes``)."""
        return self._engine.settings.end_escapes

    async def open_main(self) -> http.Response:
        """The response to the client's request. Raises GatewayError."""
        return await self._send(self._endpoint.main_fields, self._request_id)

    async def fetch_prompt_ids(self) -> list[int] | None:
        """The prompt's token ids, for an engine whose stream has none; None if it fails."""
        try:
            async with asyncio.timeout(self._engine.settings.probe_timeout):
                return await self._adapter.tokenize_chat(self._endpoint.main_fields, self._headers)
        except (TimeoutError, GatewayError, BadReply):
            return None

    async def end_trace_in_place(self) -> None:
        """Ask the engine to end the running stream's trace. Raises ContinuationRefused."""
        try:
            async with asyncio.timeout(self._engine.settings.resume_timeout):
                await self._adapter.end_trace(self.first_chunk.id, self._model, self._headers)
        except (TimeoutError, GatewayError, BadReply):
            raise ContinuationRefused("resume-failed") from None

    async def open_answer(self, session: Session, cut: Cut) -> AnswerContinuation:
        """The answer after a cut. Raises ContinuationRefused."""
        ids = (*cut.inserted.ids, *cut.closing)
        max_tokens = self.remaining_tokens(cut.kept + len(ids))
        if cut.rescued_finish_reason is not None:
            max_tokens = max(max_tokens or 0, self._engine.settings.rescue_tokens)
        return await self.request_answer(
            [*session.prompt, *session.generated[: cut.kept], *ids], max_tokens
        )

    async def request_answer(self, prompt: list[int], max_tokens: int | None) -> AnswerContinuation:
        """An answer that continues these ids. Raises ContinuationRefused."""
        self._answer_count += 1
        label = "answer" if self._answer_count == 1 else f"answer-{self._answer_count}"
        fields = self._endpoint.answer_fields(prompt, max_tokens)
        return await self._open(AnswerContinuation, fields, prompt, max_tokens, label)

    async def reopen(self, session: Session, order: Reopen) -> Continuation:
        """A main stream that continues the trace. Raises ContinuationRefused."""
        ids = order.inserted.ids
        prompt = [*session.prompt, *session.generated[: order.kept], *ids]
        max_tokens = self.remaining_tokens(order.kept + len(ids))
        self._continuation_count += 1
        fields = self._endpoint.continuation_fields(prompt, max_tokens, order.end_bias)
        label = f"more-{self._continuation_count}"
        return await self._open(Continuation, fields, prompt, max_tokens, label)

    def remaining_tokens(self, spent: int) -> int | None:
        """Tokens that the client's limit leaves; None without a limit."""
        limit = self._endpoint.token_limit
        return None if limit is None else limit - spent

    async def _open(
        self,
        kind: type[_ContinuationT],
        fields: Fields,
        prompt: list[int],
        max_tokens: int | None,
        label: str,
    ) -> _ContinuationT:
        """A stream of at most ``max_tokens`` that continues the ids ``prompt``. It is open when the
        engine has echoed these ids: until then the main stream can still go on."""
        if max_tokens is not None and max_tokens < 1:
            raise ContinuationRefused("no-token-left")
        response = stream = None
        try:
            async with asyncio.timeout(self._engine.settings.resume_timeout):
                response = await self._send(fields, f"{self._request_id}-{label}")
                stream = await kind.from_response(
                    response, prompt, self._endpoint.decode, self.first_chunk
                )
        except (TimeoutError, GatewayError, msgspec.MsgspecError, *TRANSPORT_ERRORS):
            raise ContinuationRefused("resume-failed") from None
        finally:
            if stream is None and response is not None:
                await response.aclose()
        if stream is None:
            is_accepted = response.status_code == 200
            raise ContinuationRefused("ids-not-honoured" if is_accepted else "resume-rejected")
        return stream

    async def _send(self, fields: Fields, request_id: str) -> http.Response:
        headers = [
            *(header for header in self._headers if header[0] != b"accept-encoding"),
            (b"accept-encoding", b"identity"),  # the gateway reads the body
            (b"x-request-id", request_id.encode()),
        ]
        body = msgspec.json.encode(fields)
        if not self._times.request_sent:
            self._times.request_sent = time.perf_counter()
        return await self._engine.send("POST", self._endpoint.path, headers, body)
