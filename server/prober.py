"""Ask the engine what a session wants to know, beside the running stream."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from policies.events import Embedded, EmbedFailed, Probe, ProbeResult
from policies.orders import Ask, Order, Represent
from policies.session import Session
from server.adapters.adapter import Adapter, Drawn
from server.engine import BadReply
from server.errors import GatewayError
from server.metrics import Metrics
from server.pooling import Embedder
from server.surface import Fields

__all__ = ["Prober"]


class Prober:
    """For one request. ``labels`` are those of its metrics: model and policy."""

    def __init__(
        self,
        adapter: Adapter,
        headers: Sequence[tuple[bytes, bytes]],
        sticky: Fields,
        metrics: Metrics,
        labels: tuple[str, str],
        embedder: Embedder | None = None,
    ) -> None:
        self._adapter = adapter
        self._embedder = embedder
        self._headers = headers
        self._sticky = sticky
        self._metrics = metrics
        self._labels = labels

    async def carry(self, session: Session, order: Ask | Represent) -> Order | None:
        """Ask the engine, or the embedder, and tell the session what came of it."""
        if isinstance(order, Ask):
            return await self._probe(session, order)
        return await self._represent(session, order)

    async def _probe(self, session: Session, ask: Ask) -> Order | None:
        began = time.perf_counter()
        drawn = await self._draw(session, ask)
        now = time.perf_counter()
        outcome = drawn if isinstance(drawn, str) else "ok"
        self._metrics.probes.labels(*self._labels, outcome).inc()
        if isinstance(drawn, str):
            self._metrics.fail_open.labels(self._labels[1], f"probe-{outcome}").inc()
            return session.probe_failed(outcome, ask, now)
        self._metrics.probe_seconds.labels(*self._labels).observe(now - began)
        result = ProbeResult(
            probe=ask.probe,
            position=ask.position,
            text=drawn.text,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            finished=drawn.finished,
            seconds=now - began,
            at=now,
            top=drawn.top,
            ending=drawn.ending,
            hidden_states=drawn.hidden_states,
        )
        return session.probed(result, prefilled=drawn.prefilled, decoded=drawn.decoded)

    async def _represent(self, session: Session, represent: Represent) -> Order | None:
        embed, position, began = represent.embed, represent.position, time.perf_counter()
        assert self._embedder is not None  # or the policy would not judge here
        told = await self._embedder.embed(embed.text, self._labels)
        now = time.perf_counter()
        if isinstance(told, str):
            return session.embedded(EmbedFailed(embed, position, told, now))
        return session.embedded(Embedded(embed, told, position, now - began, now))

    async def certainty(self, session: Session, answer: str) -> float | None:
        """P("Yes") behind the whole answer and the question whether it is correct; None where the
        engine did not say. The trace is its exact ids, the answer its text's."""
        marks, ledger = session.marks, session.ledger
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._adapter.engine.settings.probe_timeout):
                said = await self._adapter.tokenize(self._labels[0], answer, self._headers)
                kept = session.generated[: ledger.reasoning + ledger.marker]
                prompt = [*session.prompt, *kept, *session.closing, *said]
                drawn = await self._adapter.probe(
                    self._labels[0],
                    [*prompt, *marks.inducers["correct"]],
                    Probe("correct", 1, ending=True),
                    self._headers,
                    self._sticky,
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
        return None if drawn.ending is None else math.exp(drawn.ending)

    async def _draw(self, session: Session, ask: Ask) -> Drawn | str:
        """What the engine drew, or what became of the probe."""
        inducer = session.marks.inducers.get(ask.probe.inducer) if ask.probe.inducer else ()
        if inducer is None:
            return "bad-reply"  # the dialect has none of this name
        prompt = [*session.prompt, *session.generated[: ask.kept], *ask.closing, *inducer]
        try:
            async with asyncio.timeout(self._adapter.engine.settings.probe_timeout):
                return await self._adapter.probe(
                    self._labels[0], prompt, ask.probe, self._headers, self._sticky, ask.ending
                )
        except TimeoutError:
            return "timeout"
        except BadReply:
            return "bad-reply"
        except GatewayError:
            return "error"
