"""A response under a policy, from its request to its lines in the log."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from starlette.types import Send

from policies.ledger import Ledger
from policies.policy import Policy
from policies.sampling import Sampling
from policies.session import Session
from server.apis.retold import Original, RetoldDocument, RetoldStream
from server.choose import Asked
from server.chorus import Chorus
from server.completions import ENDPOINT as COMPLETIONS
from server.conductor import Conductor
from server.engine import Model
from server.lane import Lane
from server.relay import Relay
from server.replies import Abandonable
from server.sinks import Assembler, Sink, StreamSink
from server.spelling import Spelling, spelt
from server.surface import Surface, Wanted
from server.times import Times

if TYPE_CHECKING:
    from server.gateway import Gateway

__all__ = ["Judged", "held_out"]

log = logging.getLogger("adjourn.request")


def held_out(conversation: str, policy: Policy, salt: str, share: float) -> bool:
    """Whether this conversation's stops are not carried out. The same answer for all its requests;
    a changed policy or salt draws anew."""
    if not share:
        return False
    key = f"{salt}\0{policy!r}\0{conversation}".encode()
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return drawn < share * 2**64


class Judged(Abandonable):
    """A response under a policy: a relay and a session for each of its choices, or of the traces
    that compete for its only one. ``path``: the endpoint and the query, as they were written."""

    def __init__(
        self,
        gateway: Gateway,
        endpoint: str,
        path: str,
        request: Asked,
        policy: Policy,
        model: Model,
        headers: Sequence[tuple[bytes, bytes]],
        request_id: str,
        extra: Sequence[tuple[bytes, bytes]],
        arrived: float,
    ) -> None:
        super().__init__(gateway.metrics, (endpoint, model.id, policy.name), arrived)
        assert model.marks is not None
        settings = gateway.settings
        self._gateway = gateway
        self._adapter = gateway.adapter
        self._request = request
        self._model = model
        self._onward = headers
        self._request_id = request_id
        self._extra = extra
        self._appraiser = gateway.appraiser(model.id, policy)
        self._policy = policy
        self._enforce = enforce = settings.mode == "enforce" and request.policy is not None
        chat = endpoint != COMPLETIONS
        self._resumes = enforce and not self._adapter.in_place
        self._apart = request.stops and self._resumes
        self._is_chat = chat
        self._spelling: Spelling = "upstream" if request.translation else settings.reasoning_field
        self._skeleton = spelt(model.skeleton, self._spelling) if chat else model.text_skeleton
        self._hold_out = held_out(request.conversation, policy, settings.salt, settings.hold_out)
        self._sessions: list[Session] = []
        self._relays: list[Relay] = []
        self._raced = False
        self._told: Times | None = None  # of the trace that won
        self._sink: StreamSink | Assembler | None = None
        own = (*headers, (b"x-request-id", f"{request_id}-own".encode()))
        self._original = (
            None if request.own is None else Original(gateway.engine, path, own, request.own)
        )

    @property
    def began(self) -> bool:
        return self._sink is not None and self._sink.began

    @property
    def finished(self) -> bool:
        if isinstance(self._sink, RetoldStream):
            return self._sink.finished
        return self._request.stream and len(self._relays) == 1 and self._relays[0].finished

    @property
    def phase(self) -> str:
        if not self._request.stream:
            return "unstreamed"
        return "streaming" if self.began else "before-first-token"

    async def work(self, send: Send) -> int:
        self._sink = self._told_to(send)
        if isinstance(self._policy, Sampling) and self._enforce and not self._request.greedy:
            return self._answered(await self._race(self._policy, self._sink))
        if self._request.choices == 1:
            relay = self._relay(0, self._sink)
            await relay.run()
            return self._answered(relay.status)
        chorus = Chorus(self._sink, self._request.choices, self.metrics)
        return await chorus.run([self._relay(i, part) for i, part in enumerate(chorus.parts)])

    async def _race(self, policy: Sampling, sink: Sink) -> int:
        self._raced = True
        self._request.explicit = True  # there is always something to tell
        gateway = self._gateway
        conductor = Conductor(
            policy,
            sink,
            self._relay,
            gateway.equality,
            self.metrics,
            (self.labels[1], self.labels[2]),
            gateway.settings.keep_alive,
            self._reward if policy.needs.rewards else None,
        )
        try:
            return await conductor.run()
        finally:
            self._told = conductor.told

    async def _reward(self, thought: str) -> float | None:
        """The reward model's word on this thought about the request; None where it has none."""
        rewarder = self._gateway.rewarder
        assert rewarder is not None
        messages = msgspec.json.decode(self._request.fields["messages"])
        told = await rewarder.reward(messages, thought, self.labels[1:])
        return None if isinstance(told, str) else told

    def _session(self, sink: Sink | Lane) -> Session:
        policy, settings, marks = self._policy, self._gateway.settings, self._model.marks
        assert marks is not None
        if isinstance(policy, Sampling):
            policy = sink.policy if isinstance(sink, Lane) else policy.trace
        session = Session(
            policy,
            marks,
            self._appraiser,
            observe=not self._enforce,
            hold_out=self._hold_out,
            apart=self._apart,
            # Who asks for so many tokens of raw text gets them and no more.
            rescue=self._resumes and self._is_chat and settings.rescue_tokens > 0,
        )
        self._sessions.append(session)
        return session

    def _told_to(self, send: Send) -> StreamSink | Assembler:
        request, extra, original = self._request, self._extra, self._original
        shape = (self._skeleton, request.silence)
        if request.translation is None or original is None:
            return StreamSink(send, extra) if request.stream else Assembler(send, extra, *shape)
        retold = (request.translation, original)
        if request.stream:
            return RetoldStream(send, extra, *retold)
        return RetoldDocument(send, extra, *shape, *retold)

    def _answered(self, status: int) -> int:
        """The status that the client got."""
        if self._original is None or not self._original.status:
            return status
        if self._original.status < 400:
            self.metrics.fail_open.labels(self.labels[2], "translation-refused").inc()
        return self._original.status

    def _wanted(self, choice: int) -> Wanted:
        session = self._sessions[choice]
        return Wanted(session.policy.needs.logprobs, session.bias, session.marks.end[0])

    def _surface(self, choice: int) -> Surface:
        # A bound method kept here would make a cycle of the request and all that hangs on it.
        return self._chat(choice) if self._is_chat else self._completions(choice)

    def _chat(self, choice: int) -> Surface:
        return self._adapter.chat(
            self._request,
            choice,
            self._wanted(choice),
            apart=self._apart,
            spelling=self._spelling,
        )

    def _completions(self, choice: int) -> Surface:
        kind, marks = self._adapter.completions, self._model.marks
        assert kind is not None
        assert marks is not None
        return kind(self._request, choice, self._wanted(choice), marks=marks, apart=self._apart)

    def _relay(self, choice: int, sink: Sink | Lane) -> Relay:
        session = self._session(sink)
        relay = Relay(
            self._adapter,
            self._surface(choice),
            self._onward,
            f"{self._request_id}-{choice}" if choice else self._request_id,
            session,
            sink,
            self.metrics,
            self.labels[1:],
            self._request.explicit,
            self.arrived,
            self._gateway.embedder,
        )
        self._relays.append(relay)
        return relay

    def ended(self, status: int) -> None:
        """Metrics and the log: all that is written of a request, once."""
        super().ended(status)
        self._note_times()
        self.metrics.probe_price.labels(*self.labels[1:]).set(self._appraiser.price)
        for choice, session in enumerate(self._sessions):
            if choice and not self._raced:
                session.ledger.prompt = 0  # the choices share it
            self._note_tokens(session)
            self._note_trigger(session)
            self._log(status, choice, session)

    def _note_times(self) -> None:
        labels, metrics = self.labels[1:], self.metrics
        told = [relay.times for relay in self._relays if relay.times.first_write]
        if self._raced:
            told = [] if self._told is None else [self._told]
        if told and self._request.stream:
            times = min(told, key=lambda times: times.first_write)
            metrics.first_token.labels(*labels).observe(times.first_write - times.arrived)
        if told and self._request.stream and not self._raced:
            added = times.sent - times.arrived + times.first_write - times.first_read
            metrics.added.labels(labels[0]).observe(added)
        for times in (relay.times for relay in self._relays):
            if times.resumed:
                metrics.resume_gap.labels(labels[0]).observe(times.resumed - times.triggered)

    def _note_tokens(self, session: Session) -> None:
        metrics, labels = self.metrics, self.labels[1:]
        for kind in Ledger.__dataclass_fields__:
            metrics.tokens.labels(*labels, kind).inc(getattr(session.ledger, kind))
        if session.error is not None:
            metrics.fail_open.labels(labels[1], "policy-error").inc()
            log.error("policy %s failed", labels[1], exc_info=session.error)

    def _note_trigger(self, session: Session) -> None:
        metrics, labels = self.metrics, self.labels[1:]
        trigger = session.trigger
        if session.rescued is not None:
            metrics.rescues.labels(*labels, session.rescued).inc()
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

    def _log(self, status: int, choice: int, session: Session) -> None:
        trigger = session.trigger
        log.info(
            "completion",
            extra={
                "fields": {
                    "request_id": self._request_id,
                    "choice": choice,
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
