"""The requests that a recording sends in addition to the main stream of a sample."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

from adjourn.lab import serialization
from adjourn.lab.embedding_client import EmbeddingClient
from adjourn.lab.engine_client import Chunk, EngineClient
from adjourn.lab.http_client import ENGINE_ERRORS
from adjourn.lab.plan import probe_kind
from adjourn.lab.trace_log import CutExecuted, EmbeddingCompleted, LogEvent, ProbeCompleted
from adjourn.lab.vectors import pack_vector
from adjourn.policies.events import Probe, ProbeFailed, ProbeResult, Query
from adjourn.policies.session.orders import RequestEmbedding, SendProbe
from adjourn.policies.session.session import Session
from adjourn.policies.text.dialect import TokenizedDialect

__all__ = ["AuxiliaryCalls"]


class AuxiliaryCalls:
    """Probes, embeddings and executed cuts of one sample.

    At most one of them runs at a time, as in the gateway; the others wait, if need be until after
    the end of the trace. Otherwise the recorded times would be those of the recording's own load.

    State, changed by this class alone: ``events``, one for each completed call, in the order of
    completion; ``tasks``, which the caller enters before it schedules a call; the set of scheduled
    calls, so that none is sent twice. ``session`` belongs to the caller and has the ids that the
    main stream has generated so far. ``now``: seconds since the sample's request was sent.
    """

    def __init__(
        self,
        engine: EngineClient,
        embedder: EmbeddingClient | None,
        dialect: TokenizedDialect,
        session: Session,
        *,
        request_body: dict[str, Any],
        sample_key: str,
        cut_share: float,
        now: Callable[[], float],
    ) -> None:
        self.events: list[LogEvent] = []
        self.tasks = asyncio.TaskGroup()
        self._engine = engine
        self._embedder = embedder
        self._dialect = dialect
        self._session = session
        self._request_body = request_body
        self._sample_key = sample_key
        self._cut_share = cut_share
        self._now = now
        self._scheduled: set[tuple[int, Query]] = set()
        self._lock = asyncio.Lock()

    def schedule_probe(self, order: SendProbe) -> None:
        """Also executes a cut there, if this checkpoint is among the share that ``cut_share``
        selects."""
        if (order.kept, order.probe) in self._scheduled:
            return
        self._scheduled.add((order.kept, order.probe))
        kept = [*self._session.prompt, *self._session.generated[: order.kept]]
        self.tasks.create_task(self._record_probe(order, [*kept, *order.closing]))
        if probe_kind(order.probe) == probe_kind(Probe()) and self._should_cut(order.position):
            # Without the header: the model writes it.
            closing = order.closing[: len(order.closing) - len(self._dialect.header)]
            self.tasks.create_task(self._execute_cut(order, [*kept, *closing]))

    def schedule_embedding(self, order: RequestEmbedding) -> None:
        if (order.kept, order.embed) not in self._scheduled:
            self._scheduled.add((order.kept, order.embed))
            self.tasks.create_task(self._record_embedding(order))

    def _should_cut(self, position: int) -> bool:
        """A hash decides, so a sample that is recorded again is cut at the same checkpoints."""
        digest = hashlib.blake2b(f"{self._sample_key}\0{position}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._cut_share * 2**64

    async def _record_embedding(self, order: RequestEmbedding) -> None:
        assert self._embedder is not None
        vector = b""
        async with self._lock:
            sent_at = self._now()
            with contextlib.suppress(*ENGINE_ERRORS):
                vector = pack_vector(await self._embedder.embed(order.embed.text))
        self.events.append(
            EmbeddingCompleted(self._now(), sent_at, order.kept, order.position, vector)
        )

    async def _record_probe(self, order: SendProbe, prefix: list[int]) -> None:
        async with self._lock:
            sent_at = self._now()
            result, *tokens = await self._run_probe(order, prefix, sent_at)
        written = serialization.to_json_value(result)
        self.events.append(
            ProbeCompleted(result.at, sent_at, order.kept, order.position, written, *tokens)
        )

    async def _run_probe(
        self, order: SendProbe, prefix: list[int], sent_at: float
    ) -> tuple[ProbeResult | ProbeFailed, int, int]:
        """The probe's result, and the tokens that it prefilled and decoded."""
        try:
            name = order.probe.inducer
            inducer = self._dialect.inducers[name] if name else ()
            response = await self._engine.run_probe([*prefix, *inducer], order.probe, order.end_ids)
        except (*ENGINE_ERRORS, KeyError) as error:
            reason = "timeout" if isinstance(error, TimeoutError) else "error"
            return ProbeFailed(order.probe, order.position, reason, self._now()), 0, 0
        now = self._now()
        result = ProbeResult(
            probe=order.probe,
            position=order.position,
            text=response.text,
            tokens=response.tokens,
            logprobs=response.logprobs,
            finished=response.finished,
            seconds=round(now - sent_at, 6),
            at=now,
            top_logprobs=response.top_logprobs,
            end_logprob=response.end_logprob,
            hidden_states=response.hidden_states,
        )
        return result, response.prefilled, response.decoded

    async def _execute_cut(self, order: SendProbe, prefix: list[int]) -> None:
        """Generate the answer after these ids, as the gateway does after a cut. Records nothing if
        the engine fails or does not continue from the ids."""
        body = {**self._request_body, "kv_transfer_params": {"prompt_token_ids": prefix}}
        if (limit := body.get("max_tokens")) is not None:
            body["max_tokens"] = max(limit - len(prefix) + len(self._session.prompt), 1)
        chunks: list[Chunk] = []
        first_chunk_seconds = 0.0
        async with self._lock:
            sent_at = self._now()
            with contextlib.suppress(*ENGINE_ERRORS):
                async for chunk in self._engine.chat(body):
                    first_chunk_seconds = first_chunk_seconds or self._now() - sent_at
                    chunks.append(chunk)
        if not chunks or chunks[0].prompt_token_ids != prefix:
            return
        choices = [choice for chunk in chunks for choice in chunk.choices[:1]]
        self.events.append(
            CutExecuted(
                at=self._now(),
                sent_at=sent_at,
                first_chunk_seconds=round(first_chunk_seconds, 6),
                kept=order.kept,
                position=order.position,
                answer="".join(choice.delta.content or "" for choice in choices),
                tokens=sum(len(choice.token_ids or ()) for choice in choices),
                finish_reason=choices[-1].finish_reason if choices else None,
            )
        )
