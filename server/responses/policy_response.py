"""A response that runs under a policy: builds its relays and sessions and sends the result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from starlette.types import Send

from adjourn.policies.policy import Policy
from adjourn.policies.sampling import SamplingPolicy
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
from adjourn.server.responses.choices import MultiChoice
from adjourn.server.responses.passthrough import CancellableResponse
from adjourn.server.responses.race import TraceRace
from adjourn.server.responses.telemetry import RequestTelemetry
from adjourn.server.responses.trace_buffer import TraceBuffer
from adjourn.server.stream.assembler import Assembler
from adjourn.server.stream.reasoning_field import ReasoningField, rename_skeleton_reasoning
from adjourn.server.stream.sinks import Sink, StreamSink
from adjourn.server.upstream.client import Model

if TYPE_CHECKING:
    from adjourn.server.gateway import Gateway

__all__ = ["PolicyResponse", "is_held_out"]


def is_held_out(conversation: str, policy: Policy, salt: str, share: float) -> bool:
    """True if this conversation is in the holdout arm, where stops are not carried out.

    ``share`` is in [0, 1]. All requests of a conversation get the same answer; a new policy or
    salt assigns the conversations anew.
    """
    if not share:
        return False
    key = f"{salt}\0{policy!r}\0{conversation}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return number < share * 2**64


class PolicyResponse(CancellableResponse):
    """A response under a policy: one relay and session per choice, or per trace of a race.

    ``path_and_query``: the request target as the client wrote it. ``headers`` go to the engine,
    ``extra_headers`` to the client. ``arrived``: seconds on the monotonic clock.
    """

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
        self._is_chat = is_chat = api_path != COMPLETIONS
        self._can_resume = enforce and not self._adapter.ends_in_place
        self._separate_answer = request.has_stop_strings and self._can_resume
        self._reasoning_field: ReasoningField = (
            "upstream" if request.translation else settings.reasoning_field
        )
        self._skeleton = (
            rename_skeleton_reasoning(model.chat_skeleton, self._reasoning_field)
            if is_chat
            else model.completion_skeleton
        )
        self._is_held_out = is_held_out(
            request.conversation_id, policy, settings.salt, settings.hold_out
        )
        self._telemetry = RequestTelemetry(
            self.metrics, (model.id, policy.name), request_id, arrived, request.stream
        )
        self._relays: list[Relay] = []
        self._sink: StreamSink | Assembler | None = None
        own_headers = (*headers, (b"x-request-id", f"{request_id}-own".encode()))
        self._original = (
            None
            if request.passthrough_body is None
            else OriginalRequest(
                gateway.engine, path_and_query, own_headers, request.passthrough_body
            )
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
        multi_choice = MultiChoice(self._sink, self._request.num_choices, self.metrics)
        return await multi_choice.run(
            [self._make_relay(i, sink) for i, sink in enumerate(multi_choice.choice_sinks)]
        )

    async def _run_race(self, policy: SamplingPolicy, sink: Sink) -> int:
        self._telemetry.is_race = True
        self._request.always_summarize = True  # a race always has something to report
        gateway = self._gateway
        race = TraceRace(
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
            return await race.run()
        finally:
            self._telemetry.chosen_times = race.chosen_times

    async def _request_reward(self, reasoning: str) -> float | None:
        """The reward model's score of this reasoning for the request; None if it returns none."""
        scorer = self._gateway.reward_scorer
        assert scorer is not None
        messages = msgspec.json.decode(self._request.fields["messages"])
        reward = await scorer.score(messages, reasoning, self.labels[1:])
        return None if isinstance(reward, str) else reward

    def _make_session(self, sink: Sink | TraceBuffer) -> Session:
        policy, settings, dialect = self._policy, self._gateway.settings, self._model.dialect
        assert dialect is not None
        if isinstance(policy, SamplingPolicy):
            policy = sink.policy if isinstance(sink, TraceBuffer) else policy.trace_policy
        session = Session(
            policy,
            dialect,
            self._cost_model,
            observe_only=not self._enforce,
            hold_out=self._is_held_out,
            separate_answer=self._separate_answer,
            # A raw completion never gets more tokens than its max_tokens, so no rescue there.
            rescue=self._can_resume and self._is_chat and settings.rescue_tokens > 0,
        )
        self._telemetry.sessions.append(session)
        return session

    def _make_sink(self, send: Send) -> StreamSink | Assembler:
        request, extra, original = self._request, self._extra_headers, self._original
        shape = (self._skeleton, request.empty_content)
        if request.translation is None or original is None:
            return StreamSink(send, extra) if request.stream else Assembler(send, extra, *shape)
        translated = (request.translation, original)
        if request.stream:
            return TranslatedStream(send, extra, *translated)
        return TranslatedDocument(send, extra, *shape, *translated)

    def _client_status(self, status: int) -> int:
        """The status that the client got, given the relay's ``status``.

        They differ if the engine refused the chat request and its own endpoint answered.
        """
        if self._original is None or not self._original.status:
            return status
        if self._original.status < 400:
            self.metrics.fail_open.labels(self.labels[2], "translation-refused").inc()
        return self._original.status

    def _make_endpoint(self, choice: int, session: Session) -> Endpoint:
        # Do not store a bound method here: the reference cycle would keep the finished request
        # alive until the garbage collector runs.
        needs = session.policy.needs
        extras = PolicyExtras(needs.logprobs, session.end_bias, session.dialect.end[0])
        return (
            self._make_chat_endpoint(choice, extras)
            if self._is_chat
            else self._make_completions_endpoint(choice, extras)
        )

    def _make_chat_endpoint(self, choice: int, extras: PolicyExtras) -> Endpoint:
        return self._adapter.chat_endpoint(
            self._request,
            choice,
            extras,
            separate_answer=self._separate_answer,
            reasoning_field=self._reasoning_field,
        )

    def _make_completions_endpoint(self, choice: int, extras: PolicyExtras) -> Endpoint:
        endpoint_type, dialect = self._adapter.completions_endpoint, self._model.dialect
        assert endpoint_type is not None
        assert dialect is not None
        return endpoint_type(
            self._request,
            choice,
            extras,
            dialect=dialect,
            separate_answer=self._separate_answer,
        )

    def _make_relay(self, choice: int, sink: Sink | TraceBuffer) -> Relay:
        session = self._make_session(sink)
        relay = Relay(
            self._adapter,
            self._make_endpoint(choice, session),
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
        self._telemetry.times.append(relay.times)
        return relay

    def record_end(self, status: int) -> None:
        super().record_end(status)
        self._telemetry.record(status, self._cost_model.cost)
