"""``POST /v1/chat/completions``: one request, from its body to its line in the log."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.types import Send

from policies.ledger import Ledger
from policies.policy import Policy
from policies.session import Session
from server.choose import ChatRequest
from server.engine import Model
from server.relay import Relay
from server.responses import Abandonable
from server.sinks import Assembler, StreamSink

if TYPE_CHECKING:
    from server.gateway import Gateway

__all__ = ["JudgedChat", "held_out"]

log = logging.getLogger("adjourn.request")

ENDPOINT = "/v1/chat/completions"


def held_out(conversation: str, policy: Policy, salt: str, share: float) -> bool:
    """Whether this conversation's stops are not carried out. The same answer for all its requests;
    a changed policy or salt draws anew."""
    if not share:
        return False
    key = f"{salt}\0{policy!r}\0{conversation}".encode()
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return drawn < share * 2**64


class JudgedChat(Abandonable):
    """A chat response under a policy."""

    def __init__(
        self,
        gateway: Gateway,
        request: ChatRequest,
        policy: Policy,
        model: Model,
        headers: Sequence[tuple[bytes, bytes]],
        request_id: str,
        extra: Sequence[tuple[bytes, bytes]],
        arrived: float,
    ) -> None:
        super().__init__(gateway.metrics, (ENDPOINT, model.id, policy.name), arrived)
        assert model.marks is not None
        settings = gateway.settings
        self._gateway = gateway
        self._request = request
        self._model = model
        self._onward = headers
        self._request_id = request_id
        self._extra = extra
        self._appraiser = gateway.appraiser(model.id, policy)
        self._session = Session(
            policy,
            model.marks,
            self._appraiser,
            observe=settings.mode == "observe",
            hold_out=held_out(request.conversation, policy, settings.salt, settings.hold_out),
        )
        self._relay: Relay | None = None
        self._sink: StreamSink | Assembler | None = None

    @property
    def began(self) -> bool:
        return self._sink is not None and self._sink.began

    @property
    def phase(self) -> str:
        if not self._request.stream:
            return "unstreamed"
        return "streaming" if self.began else "before-first-token"

    async def work(self, send: Send) -> int:
        self._sink = (
            StreamSink(send, self._extra)
            if self._request.stream
            else Assembler(send, self._extra, self._model.skeleton, self._request.silence)
        )
        self._relay = Relay(
            self._gateway.engine,
            self._request,
            self._onward,
            self._request_id,
            self._session,
            self._sink,
            self.metrics,
            self.labels[1:],
            self.arrived,
        )
        await self._relay.run()
        return self._relay.status

    def ended(self, status: int) -> None:
        """Metrics and the log: all that is written of a request, once."""
        super().ended(status)
        metrics, labels, session = self.metrics, self.labels[1:], self._session
        for kind in Ledger.__dataclass_fields__:
            metrics.tokens.labels(*labels, kind).inc(getattr(session.ledger, kind))
        metrics.probe_price.labels(*labels).set(self._appraiser.price)
        self._note_times()
        self._note_trigger()
        if session.error is not None:
            metrics.fail_open.labels(labels[1], "policy-error").inc()
            log.error("policy %s failed", labels[1], exc_info=session.error)
        self._log(status)

    def _note_times(self) -> None:
        if self._relay is None:
            return
        times, metrics = self._relay.times, self.metrics
        if times.first_write and self._request.stream:
            metrics.first_token.labels(*self.labels[1:]).observe(times.first_write - times.arrived)
            added = times.sent - times.arrived + times.first_write - times.first_read
            metrics.added.labels(self.labels[1]).observe(added)
        if times.resumed:
            metrics.resume_gap.labels(self.labels[1]).observe(times.resumed - times.triggered)

    def _note_trigger(self) -> None:
        session, metrics, labels = self._session, self.metrics, self.labels[1:]
        trigger = session.trigger
        if session.ledger.reasoning:
            outcome = trigger.action if trigger else "whole"
            metrics.trace.labels(*labels, outcome).observe(session.ledger.reasoning)
        if trigger is None:
            return
        metrics.triggers.labels(*labels, trigger.action).inc()
        if session.stopped:
            metrics.stops.labels(*labels, trigger.stop.reason).inc()
            metrics.tokens_at_stop.labels(*labels).observe(trigger.position)
        elif trigger.after is not None:
            metrics.spared.labels(*labels, trigger.action).observe(trigger.after)

    def _log(self, status: int) -> None:
        session, trigger = self._session, self._session.trigger
        log.info(
            "chat",
            extra={
                "fields": {
                    "request_id": self._request_id,
                    "model": self.labels[1],
                    "policy": self.labels[2],
                    "status": status,
                    "seconds": round(time.perf_counter() - self.arrived, 4),
                    "trigger": trigger.action if trigger else None,
                    "reason": trigger.stop.reason if trigger else None,
                    "muted": session.muted,
                    "probes": session.probes,
                    "tokens": {
                        kind: getattr(session.ledger, kind) for kind in Ledger.__dataclass_fields__
                    },
                }
            },
        )
