"""Send a session's probes to the engine, concurrently with the main stream."""

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
    """Sends the probes of one request. Keeps no state between calls.

    ``shared_fields``: fields that all engine calls of the request share. ``labels``: model and
    policy, for the metrics. Fail open: every failure becomes a failed query of the session.
    """

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
        """Send the query and give its result to the session. Returns the session's next order."""
        if isinstance(order, SendProbe):
            return await self._run_probe(session, order)
        return await self._request_embedding(session, order)

    async def _run_probe(self, session: Session, send_probe: SendProbe) -> Order | None:
        sent_at = time.perf_counter()
        response = await self._send_probe(session, send_probe)
        now = time.perf_counter()
        outcome = response if isinstance(response, str) else "ok"
        self._metrics.probes.labels(*self._labels, outcome).inc()
        if isinstance(response, str):
            self._metrics.fail_open.labels(self._labels[1], f"probe-{outcome}").inc()
            return session.on_probe_failed(outcome, send_probe, now)
        self._metrics.probe_seconds.labels(*self._labels).observe(now - sent_at)
        result = ProbeResult(
            probe=send_probe.probe,
            position=send_probe.position,
            text=response.text,
            tokens=response.tokens,
            logprobs=response.logprobs,
            finished=response.finished,
            seconds=now - sent_at,
            at=now,
            top_logprobs=response.top_logprobs,
            end_logprob=response.end_logprob,
            hidden_states=response.hidden_states,
        )
        return session.on_probe_result(
            result, prefilled=response.prefilled, decoded=response.decoded
        )

    async def _request_embedding(self, session: Session, request: RequestEmbedding) -> Order | None:
        embed, position, sent_at = request.embed, request.position, time.perf_counter()
        assert self._embedder is not None  # else the request would be ineligible for the policy
        vector = await self._embedder.embed(embed.text, self._labels)
        now = time.perf_counter()
        if isinstance(vector, str):
            return session.on_embedding(EmbeddingFailed(embed, position, vector, now))
        return session.on_embedding(EmbeddingResult(embed, vector, position, now - sent_at, now))

    async def probe_certainty(self, session: Session, answer: str) -> float | None:
        """P("Yes") after the whole answer and the question whether it is correct; None on failure.

        The prompt has the trace's exact ids; the answer is tokenized from its text.
        """
        dialect, ledger = session.dialect, session.ledger
        sent_at = time.perf_counter()
        try:
            async with asyncio.timeout(self._adapter.engine.settings.probe_timeout):
                answer_ids = await self._adapter.tokenize(self._labels[0], answer, self._headers)
                kept = session.generated[: ledger.reasoning + ledger.marker]
                prompt = [*session.prompt, *kept, *session.closing, *answer_ids]
                response = await self._adapter.probe(
                    self._labels[0],
                    [*prompt, *dialect.inducers["correct"]],
                    Probe("correct", 1, score_end=True),
                    self._headers,
                    self._shared_fields,
                    dialect.inducers["yes"],
                )
        except (TimeoutError, BadReply, GatewayError) as error:
            outcome = "timeout" if isinstance(error, TimeoutError) else "error"
            self._metrics.probes.labels(*self._labels, outcome).inc()
            self._metrics.fail_open.labels(self._labels[1], f"probe-{outcome}").inc()
            return None
        self._metrics.probes.labels(*self._labels, "ok").inc()
        self._metrics.probe_seconds.labels(*self._labels).observe(time.perf_counter() - sent_at)
        ledger.probe += response.decoded
        ledger.prefilled += response.prefilled
        return None if response.end_logprob is None else math.exp(response.end_logprob)

    async def _send_probe(self, session: Session, send_probe: SendProbe) -> ProbeResponse | str:
        """The engine's response, or the reason of a failure: timeout, bad-reply or error."""
        name = send_probe.probe.inducer
        inducer = session.dialect.inducers.get(name) if name else ()
        if inducer is None:
            return "bad-reply"  # the dialect has no inducer of this name
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
