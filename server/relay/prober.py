"""Ask the engine what a session wants to know, beside the running stream."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from adjourn.policies.events import EmbeddingFailed, EmbeddingResult, Probe, ProbeResult
from adjourn.policies.session.orders import Order, RequestEmbedding, SendProbe
from adjourn.policies.session.session import Session
from adjourn.server.api.endpoint import Fields
from adjourn.server.engines.adapter import Adapter, ProbeResponse
from adjourn.server.errors import GatewayError
from adjourn.server.metrics import Metrics
from adjourn.server.upstream.client import BadReply
from adjourn.server.upstream.pooling import Embedder

__all__ = ["Prober"]


class Prober:
    """For one request. ``labels`` are those of its metrics: model and policy."""

    def __init__(
        self,
        adapter: Adapter,
        headers: Sequence[tuple[bytes, bytes]],
        shared_fields: Fields,
        metrics: Metrics,
        labels: tuple[str, str],
        embedder: Embedder | None = None,
    ) -> None:
        self._adapter = adapter
        self._embedder = embedder
        self._headers = headers
        self._shared_fields = shared_fields
        self._metrics = metrics
        self._labels = labels

    async def execute(self, session: Session, order: SendProbe | RequestEmbedding) -> Order | None:
        """Ask the engine, or the embedder, and tell the session what came of it."""
        if isinstance(order, SendProbe):
            return await self._run_probe(session, order)
        return await self._request_embedding(session, order)

    async def _run_probe(self, session: Session, send_probe: SendProbe) -> Order | None:
        began = time.perf_counter()
        drawn = await self._send_probe(session, send_probe)
        now = time.perf_counter()
        outcome = drawn if isinstance(drawn, str) else "ok"
        self._metrics.probes.labels(*self._labels, outcome).inc()
        if isinstance(drawn, str):
            self._metrics.fail_open.labels(self._labels[1], f"probe-{outcome}").inc()
            return session.on_probe_failed(outcome, send_probe, now)
        self._metrics.probe_seconds.labels(*self._labels).observe(now - began)
        result = ProbeResult(
            probe=send_probe.probe,
            position=send_probe.position,
            text=drawn.text,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            finished=drawn.finished,
            seconds=now - began,
            at=now,
            top_logprobs=drawn.top_logprobs,
            end_logprob=drawn.end_logprob,
            hidden_states=drawn.hidden_states,
        )
        return session.on_probe_result(result, prefilled=drawn.prefilled, decoded=drawn.decoded)

    async def _request_embedding(self, session: Session, request: RequestEmbedding) -> Order | None:
        embed, position, began = request.embed, request.position, time.perf_counter()
        assert self._embedder is not None  # or the policy would not judge here
        told = await self._embedder.embed(embed.text, self._labels)
        now = time.perf_counter()
        if isinstance(told, str):
            return session.on_embedding(EmbeddingFailed(embed, position, told, now))
        return session.on_embedding(EmbeddingResult(embed, told, position, now - began, now))

    async def probe_certainty(self, session: Session, answer: str) -> float | None:
        """P("Yes") behind the whole answer and the question whether it is correct; None where the
        engine did not say. The trace is its exact ids, the answer its text's."""
        marks, ledger = session.dialect, session.ledger
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._adapter.engine.settings.probe_timeout):
                said = await self._adapter.tokenize(self._labels[0], answer, self._headers)
                kept = session.generated[: ledger.reasoning + ledger.marker]
                prompt = [*session.prompt, *kept, *session.closing, *said]
                drawn = await self._adapter.probe(
                    self._labels[0],
                    [*prompt, *marks.inducers["correct"]],
                    Probe("correct", 1, score_end=True),
                    self._headers,
                    self._shared_fields,
                    marks.inducers["yes"],
                )
        except (TimeoutError, BadReply, GatewayError) as error:
            outcome = "timeout" if isinstance(error, TimeoutError) else "error"
            self._metrics.probes.labels(*self._labels, outcome).inc()
            self._metrics.fail_open.labels(self._labels[1], f"probe-{outcome}").inc()
            return None
        self._metrics.probes.labels(*self._labels, "ok").inc()
        self._metrics.probe_seconds.labels(*self._labels).observe(time.perf_counter() - began)
        ledger.probe += drawn.decoded
        ledger.prefilled += drawn.prefilled
        return None if drawn.end_logprob is None else math.exp(drawn.end_logprob)

    async def _send_probe(self, session: Session, send_probe: SendProbe) -> ProbeResponse | str:
        """What the engine drew, or what became of the probe."""
        inducer = (
            session.dialect.inducers.get(send_probe.probe.inducer)
            if send_probe.probe.inducer
            else ()
        )
        if inducer is None:
            return "bad-reply"  # the dialect has none of this name
        prompt = [
            *session.prompt,
            *session.generated[: send_probe.kept],
            *send_probe.closing,
            *inducer,
        ]
        try:
            async with asyncio.timeout(self._adapter.engine.settings.probe_timeout):
                return await self._adapter.probe(
                    self._labels[0],
                    prompt,
                    send_probe.probe,
                    self._headers,
                    self._shared_fields,
                    send_probe.end_ids,
                )
        except TimeoutError:
            return "timeout"
        except BadReply:
            return "bad-reply"
        except GatewayError:
            return "error"
