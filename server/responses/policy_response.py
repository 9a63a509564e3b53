"""A response under a policy, from its request to its lines in the log."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from starlette.types import Send

from adjourn.policies.policy import Policy
from adjourn.policies.sampling import SamplingPolicy
from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.session import Session
from adjourn.server.api.completions import COMPLETIONS_PATH as COMPLETIONS
from adjourn.server.api.endpoint import Endpoint, PolicyExtras
from adjourn.server.api.request import ParsedRequest
from adjourn.server.api.translated.sinks import (
    OriginalRequest,
    TranslatedDocument,
    TranslatedStream,
)
from adjourn.server.relay.relay import Relay
from adjourn.server.relay.times import Times
from adjourn.server.responses.choices import MultiChoice
from adjourn.server.responses.passthrough import CancellableResponse
from adjourn.server.responses.race import TraceRace
from adjourn.server.responses.trace_buffer import TraceBuffer
from adjourn.server.stream.reasoning_field import ReasoningField, rename_skeleton_reasoning
from adjourn.server.stream.sinks import Assembler, Sink, StreamSink
from adjourn.server.upstream.client import Model

if TYPE_CHECKING:
    from adjourn.server.gateway import Gateway

__all__ = ["PolicyResponse", "is_held_out"]

log = logging.getLogger("adjourn.request")


def is_held_out(conversation: str, policy: Policy, salt: str, share: float) -> bool:
    """Whether this conversation's stops are not carried out. The same answer for all its requests;
    a changed policy or salt draws anew."""
    if not share:
        return False
    key = f"{salt}\0{policy!r}\0{conversation}".encode()
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return drawn < share * 2**64


class PolicyResponse(CancellableResponse):
    """A response under a policy: a relay and a session for each of its choices, or of the traces
    that compete for its only one. ``path``: the endpoint and the query, as they were written."""

    def __init__(
        self,
        gateway: Gateway,
        api_path: str,
        path_and_query: str,
        request: ParsedRequest,
        policy: Policy,
        model: Model,
        headers: Sequence[tuple[bytes, bytes]],
        request_id: str,
        extra_headers: Sequence[tuple[bytes, bytes]],
        arrived: float,
    ) -> None:
        super().__init__(gateway.metrics, (api_path, model.id, policy.name), arrived)
        assert model.dialect is not None
        settings = gateway.settings
        self._gateway = gateway
        self._adapter = gateway.adapter
        self._request = request
        self._model = model
        self._upstream_headers = headers
        self._request_id = request_id
        self._extra_headers = extra_headers
        self._cost_model = gateway.get_cost_model(model.id, policy)
        self._policy = policy
        self._enforce = enforce = settings.mode == "enforce" and request.policy is not None
        chat = api_path != COMPLETIONS
        self._can_resume = enforce and not self._adapter.ends_in_place
        self._separate_answer = request.has_stop_strings and self._can_resume
        self._is_chat = chat
        self._reasoning_field: ReasoningField = (
            "upstream" if request.translation else settings.reasoning_field
        )
        self._skeleton = (
            rename_skeleton_reasoning(model.chat_skeleton, self._reasoning_field)
            if chat
            else model.completion_skeleton
        )
        self._is_held_out = is_held_out(
            request.conversation_id, policy, settings.salt, settings.hold_out
        )
        self._sessions: list[Session] = []
        self._relays: list[Relay] = []
        self._is_race = False
        self._chosen_times: Times | None = None  # of the trace that won
        self._sink: StreamSink | Assembler | None = None
        own = (*headers, (b"x-request-id", f"{request_id}-own".encode()))
        self._original = (
            None
            if request.passthrough_body is None
            else OriginalRequest(gateway.engine, path_and_query, own, request.passthrough_body)
        )

    @property
    def has_started(self) -> bool:
        return self._sink is not None and self._sink.has_started

    @property
    def is_complete(self) -> bool:
        if isinstance(self._sink, TranslatedStream):
            return self._sink.finished
        return self._request.stream and len(self._relays) == 1 and self._relays[0].is_complete

    @property
    def phase(self) -> str:
        if not self._request.stream:
            return "unstreamed"
        return "streaming" if self.has_started else "before-first-token"

    async def respond(self, send: Send) -> int:
        self._sink = self._make_sink(send)
        if isinstance(self._policy, SamplingPolicy) and self._enforce and not self._request.greedy:
            return self._client_status(await self._run_race(self._policy, self._sink))
        if self._request.num_choices == 1:
            relay = self._make_relay(0, self._sink)
            await relay.run()
            return self._client_status(relay.status)
        chorus = MultiChoice(self._sink, self._request.num_choices, self.metrics)
        return await chorus.run(
            [self._make_relay(i, part) for i, part in enumerate(chorus.choice_sinks)]
        )

    async def _run_race(self, policy: SamplingPolicy, sink: Sink) -> int:
        self._is_race = True
        self._request.always_summarize = True  # there is always something to tell
        gateway = self._gateway
        conductor = TraceRace(
            policy,
            sink,
            self._make_relay,
            gateway.equality_checker,
            self.metrics,
            (self.labels[1], self.labels[2]),
            gateway.settings.keep_alive,
            self._request_reward if policy.needs.rewards else None,
        )
        try:
            return await conductor.run()
        finally:
            self._chosen_times = conductor.chosen_times

    async def _request_reward(self, reasoning: str) -> float | None:
        """The reward model's word on this thought about the request; None where it has none."""
        rewarder = self._gateway.reward_scorer
        assert rewarder is not None
        messages = msgspec.json.decode(self._request.fields["messages"])
        told = await rewarder.score(messages, reasoning, self.labels[1:])
        return None if isinstance(told, str) else told

    def _make_session(self, sink: Sink | TraceBuffer) -> Session:
        policy, settings, marks = self._policy, self._gateway.settings, self._model.dialect
        assert marks is not None
        if isinstance(policy, SamplingPolicy):
            policy = sink.policy if isinstance(sink, TraceBuffer) else policy.trace_policy
        session = Session(
            policy,
            marks,
            self._cost_model,
            observe_only=not self._enforce,
            hold_out=self._is_held_out,
            separate_answer=self._separate_answer,
            # Who asks for so many tokens of raw text gets them and no more.
            rescue=self._can_resume and self._is_chat and settings.rescue_tokens > 0,
        )
        self._sessions.append(session)
        return session

    def _make_sink(self, send: Send) -> StreamSink | Assembler:
        request, extra, original = self._request, self._extra_headers, self._original
        shape = (self._skeleton, request.empty_content)
        if request.translation is None or original is None:
            return StreamSink(send, extra) if request.stream else Assembler(send, extra, *shape)
        retold = (request.translation, original)
        if request.stream:
            return TranslatedStream(send, extra, *retold)
        return TranslatedDocument(send, extra, *shape, *retold)

    def _client_status(self, status: int) -> int:
        """The status that the client got."""
        if self._original is None or not self._original.status:
            return status
        if self._original.status < 400:
            self.metrics.fail_open.labels(self.labels[2], "translation-refused").inc()
        return self._original.status

    def _policy_extras(self, choice: int) -> PolicyExtras:
        session = self._sessions[choice]
        return PolicyExtras(session.policy.needs.logprobs, session.end_bias, session.dialect.end[0])

    def _make_endpoint(self, choice: int) -> Endpoint:
        # A bound method kept here would make a cycle of the request and all that hangs on it.
        return (
            self._make_chat_endpoint(choice)
            if self._is_chat
            else self._make_completions_endpoint(choice)
        )

    def _make_chat_endpoint(self, choice: int) -> Endpoint:
        return self._adapter.chat_endpoint(
            self._request,
            choice,
            self._policy_extras(choice),
            separate_answer=self._separate_answer,
            reasoning_field=self._reasoning_field,
        )

    def _make_completions_endpoint(self, choice: int) -> Endpoint:
        kind, marks = self._adapter.completions_endpoint, self._model.dialect
        assert kind is not None
        assert marks is not None
        return kind(
            self._request,
            choice,
            self._policy_extras(choice),
            dialect=marks,
            separate_answer=self._separate_answer,
        )

    def _make_relay(self, choice: int, sink: Sink | TraceBuffer) -> Relay:
        session = self._make_session(sink)
        relay = Relay(
            self._adapter,
            self._make_endpoint(choice),
            self._upstream_headers,
            f"{self._request_id}-{choice}" if choice else self._request_id,
            session,
            sink,
            self.metrics,
            self.labels[1:],
            self._request.always_summarize,
            self.arrived,
            self._gateway.embedder,
        )
        self._relays.append(relay)
        return relay

    def record_end(self, status: int) -> None:
        """Metrics and the log: all that is written of a request, once."""
        super().record_end(status)
        self._record_times()
        self.metrics.probe_price.labels(*self.labels[1:]).set(self._cost_model.cost)
        for choice, session in enumerate(self._sessions):
            if choice and not self._is_race:
                session.ledger.prompt = 0  # the choices share it
            self._record_tokens(session)
            self._record_trigger(session)
            self._log_completion(status, choice, session)

    def _record_times(self) -> None:
        labels, metrics = self.labels[1:], self.metrics
        told = [relay.times for relay in self._relays if relay.times.first_write]
        if self._is_race:
            told = [] if self._chosen_times is None else [self._chosen_times]
        if told and self._request.stream:
            times = min(told, key=lambda times: times.first_write)
            metrics.time_to_first_token.labels(*labels).observe(times.first_write - times.arrived)
        if told and self._request.stream and not self._is_race:
            added = times.request_sent - times.arrived + times.first_write - times.first_read
            metrics.added_first_token.labels(labels[0]).observe(added)
        for times in (relay.times for relay in self._relays):
            if times.resumed:
                metrics.resume_gap.labels(labels[0]).observe(times.resumed - times.triggered)

    def _record_tokens(self, session: Session) -> None:
        metrics, labels = self.metrics, self.labels[1:]
        for kind in Ledger.__dataclass_fields__:
            metrics.tokens.labels(*labels, kind).inc(getattr(session.ledger, kind))
        if session.policy_error is not None:
            metrics.fail_open.labels(labels[1], "policy-error").inc()
            log.error("policy %s failed", labels[1], exc_info=session.policy_error)

    def _record_trigger(self, session: Session) -> None:
        metrics, labels = self.metrics, self.labels[1:]
        trigger = session.trigger
        if session.rescued_finish_reason is not None:
            metrics.rescues.labels(*labels, session.rescued_finish_reason).inc()
        if session.ledger.reasoning:
            outcome = trigger.action if trigger else "whole"
            metrics.trace_tokens.labels(*labels, outcome).observe(session.ledger.reasoning)
        if trigger is None:
            return
        metrics.triggers.labels(*labels, trigger.action).inc()
        if session.stopped:
            metrics.stops.labels(*labels, trigger.stop.reason).inc()
            metrics.tokens_at_stop.labels(*labels).observe(trigger.position)
        elif trigger.tokens_after is not None:
            metrics.tokens_after_trigger.labels(*labels, trigger.action).observe(
                trigger.tokens_after
            )

    def _log_completion(self, status: int, choice: int, session: Session) -> None:
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
                    "muted": session.mute_reason,
                    "probes": session.probe_count,
                    "tokens": {
                        kind: getattr(session.ledger, kind) for kind in Ledger.__dataclass_fields__
                    },
                }
            },
        )
