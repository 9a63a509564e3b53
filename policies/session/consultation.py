"""Ask the policy, and turn its commands into orders. The only code that calls a policy."""

from __future__ import annotations

from collections.abc import Sequence

from adjourn.policies.events import (
    Checkpoint,
    Command,
    Embed,
    Event,
    Extend,
    Probe,
    ProbeFailed,
    ProbeResult,
    Query,
    QueryResult,
    ReasoningChunk,
    Stop,
    TraceEnded,
    TraceEnding,
)
from adjourn.policies.never import Never
from adjourn.policies.policy import Policy, Stopper
from adjourn.policies.session.bounds import EndMarker
from adjourn.policies.session.orders import Cut, Order, Reopen, RequestEmbedding, SendProbe
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.probe_series import ProbeSeries
from adjourn.policies.session.states import Input, State
from adjourn.policies.session.stream_switch import StreamSwitch
from adjourn.policies.session.trace import ReceivedChunk, Trace
from adjourn.policies.session.trigger import DryRunAction, Trigger
from adjourn.policies.session.window import CutPoint
from adjourn.policies.text.boundaries import Boundary
from adjourn.policies.text.cues import Cue
from adjourn.policies.text.markers import MarkerKind

__all__ = ["Consultation"]


class Consultation:
    """The policy of one trace, the questions it asks, and what they cost.

    state             content                                                  changed by
    ----------------  -------------------------------------------------------  ----------------
    mute_reason       why the policy is no longer asked; the first reason stays mute
    policy_error      the exception that muted it                              observe
    probe_count       probes sent                                              consult
    first_token_at    when the trace's first token came                        Session.feed
    _query_position   the position of the query in flight, or of the latest    consult
    _probe_approved   the price of a probe was accepted at this checkpoint     consult
    _series           the cost of this trace's checkpoints so far              consult, on_result,
                                                                               on_trace_end

    Invariant (fail open): no exception of a policy leaves this class. The policy is muted instead
    and the trace continues without it. The driver mutes it too when a probe or a cut fails.
    """

    __slots__ = (
        *("_cost_model", "_dry_run_action", "_probe_approved", "_query_position", "_series"),
        *("_stopper", "_switch", "first_token_at", "mute_reason", "needs", "policy_error"),
        "probe_count",
    )

    def __init__(
        self,
        policy: Policy,
        cost_model: ProbeCostModel,
        switch: StreamSwitch,
        dry_run_action: DryRunAction | None,
    ) -> None:
        self.needs = policy.needs
        self.mute_reason: str | None = None
        self.policy_error: Exception | None = None
        self.probe_count = 0
        self.first_token_at: float | None = None
        self._query_position = 0
        self._probe_approved = False
        self._series = ProbeSeries(cost_model, self.needs.min_checkpoints)
        self._cost_model = cost_model
        self._switch = switch
        self._dry_run_action = dry_run_action
        self._stopper: Stopper = Never()
        try:
            self._stopper = policy.start()
        except Exception as error:
            self._record_error(error)

    @property
    def end_bias(self) -> float:
        """Added to the end marker's logit on the main stream, from its first token."""
        return self.needs.end_bias if self._dry_run_action is None else 0.0

    def is_done(self, trace: Trace) -> bool:
        """Whether the policy is no longer asked."""
        return self.mute_reason is not None or trace.trigger is not None

    def mute(self, reason: str) -> None:
        if self.mute_reason is None:
            self.mute_reason = reason

    def on_chunk(
        self,
        trace: Trace,
        chunk: ReceivedChunk,
        before: CutPoint,
        logprobs: Sequence[Sequence[float]],
    ) -> Order | None:
        """Read a chunk of the open trace, already counted, and visit the checkpoints in it."""
        checkpoints, at = trace.checkpoints, chunk.at
        finds = checkpoints.find(chunk.reasoning)
        trace.window.hold(before)
        if checkpoints.take_start(chunk.reasoning):
            start = Checkpoint("start", trace.cut_position, at)
            if (order := self.consult(trace, start)) is not None:
                return order
        if trace.state is State.THINKING:
            # The chunk in which a checkpoint begins must stay: the cut would be before it.
            trace.release_until(finds[0].start if finds else checkpoints.settled_length)
        if self.needs.reasoning_chunks:
            event = ReasoningChunk(
                chunk.reasoning,
                tuple(chunk.ids),
                trace.ledger.reasoning,
                at,
                tuple(tuple(one) for one in logprobs),
            )
            if (order := self.consult(trace, event)) is not None:
                return order
        if trace.state is not State.THINKING:
            checkpoints.defer_interval(trace.ledger.reasoning)
            return None
        for find in finds:
            if (order := self._visit(trace, find, at)) is not None:
                return order
        if finds:
            trace.release_settled()
        return self._visit_interval(trace, at)

    def on_result(self, trace: Trace, event: QueryResult) -> Order | None:
        """The result of a query. One that comes too late for its checkpoint is ignored."""
        if trace.state is not State.PROBING or event.position != self._query_position:
            return None
        order = self.consult(trace, event) if self.mute_reason is None else None
        if isinstance(order, SendProbe | RequestEmbedding):
            return order
        if self._probe_approved:
            has_result = isinstance(event, ProbeResult)
            stopped = trace.trigger is not None
            self._series.finish_checkpoint(has_result=has_result, stopped=stopped)
        self._record_decode_rate(trace, event.at)
        if trace.state is State.PROBING:
            self.continue_trace(trace)
            return self._visit_deferred(trace, event.at)
        return order

    def try_extend(
        self, trace: Trace, before: CutPoint, end: EndMarker | None, last: ReceivedChunk
    ) -> Reopen | None:
        """The chunk ``last`` ends the trace: whether the policy wants it to continue instead."""
        is_end = end is not None and end.kind is MarkerKind.END
        if not (self.needs.trace_endings and is_end) or self.first_token_at is None:
            return None
        if self._dry_run_action is not None:
            return None
        command = self.observe(trace, TraceEnding(before.position, last.at))
        if not isinstance(command, Extend):
            return None
        order = self._switch.begin_reopen(trace, before, command)
        self._switch.put_back(trace, last)
        return order

    def on_trace_end(self, trace: Trace, last: ReceivedChunk) -> None:
        """The trace is over and counted. A trace that a token limit ended (``"length"``) shows
        nothing about how long traces are."""
        self._record_decode_rate(trace, last.at)
        if trace.stopped:
            return  # the engine ended it in place: this is not the model's own end
        length = trace.ledger.reasoning
        if last.finish_reason != "length":
            self._cost_model.record_trace_length(length)
        if trace.trigger is not None:
            if last.finish_reason != "length":
                trace.trigger.tokens_after = length - trace.trigger.position
            return
        self._series.finish()
        if self.mute_reason is None:
            self.observe(trace, TraceEnded(length, last.at))

    def add_probe_time(self, seconds: float) -> None:
        """A probe of this trace took so long."""
        self._series.add_probe_time(seconds)

    def continue_trace(self, trace: Trace) -> None:
        """Nothing came of the query in flight, if there was one."""
        if trace.state is State.PROBING:
            trace.transition(Input.CONTINUE)
        if self.is_done(trace) and not trace.is_switching_stream:
            trace.release_all()

    def observe(self, trace: Trace, event: Event) -> Command | None:
        """The policy's command. None also if the policy is done, or fails now."""
        if self.is_done(trace):
            return None
        try:
            command = self._stopper.observe(event)
            if not isinstance(command, Command | None):
                raise TypeError(f"{command!r} is not a command")
        except Exception as error:  # whatever a policy does wrong, the stream goes on
            self._record_error(error)
            self.continue_trace(trace)
            return None
        return command

    def consult(self, trace: Trace, event: Event) -> Order | None:
        """Ask the policy and begin what it commands."""
        command = self.observe(trace, event)
        if trace.state not in (State.THINKING, State.PROBING):
            return None  # the trace is over: there is nothing left to stop
        if isinstance(command, Stop):
            if not isinstance(event, ProbeResult | ProbeFailed):
                self._series.finish()
            return self._stop(trace, command)
        if isinstance(command, Query):
            return self._start_query(trace, command, event)
        extends = isinstance(event, ReasoningChunk) and self._dry_run_action is None
        if isinstance(command, Extend) and extends:
            place = trace.window.partial_start or trace.current_point
            return self._switch.begin_reopen(trace, place, command)
        return None

    def _stop(self, trace: Trace, stop: Stop) -> Cut | None:
        if stop.position is None:
            trace.release_until(trace.checkpoints.text_length)  # keep all that was decoded
        action = self._dry_run_action
        trace.trigger = Trigger(stop, trace.cut_position, action or "abandoned")
        if action is None:
            return self._switch.begin_stop(trace, stop)
        self.continue_trace(trace)
        return None

    def _start_query(self, trace: Trace, query: Query, event: Event) -> Order | None:
        place = trace.cut_point
        if trace.state is State.THINKING:
            self._query_position, self._probe_approved = place.position, False
        elif not isinstance(event, QueryResult):
            return None  # one query at a time
        position = self._query_position
        if isinstance(query, Probe) and not self._probe_approved:
            if not self._series.should_probe(position):
                return self.consult(trace, ProbeFailed(query, position, "price", event.at))
            self._probe_approved = True
        trace.transition(Input.PROBE)
        if isinstance(query, Embed):
            return RequestEmbedding(query, place.kept, position)
        self.probe_count += 1
        closing = trace.closing_at(place)
        end_ids = trace.dialect.matcher.trim_after_end(closing) if query.score_end else ()
        forced = closing + trace.dialect.header if query.close_trace else ()
        return SendProbe(query, place.kept, position, forced, end_ids)

    def _visit(self, trace: Trace, find: Cue | Boundary, at: float) -> Order | None:
        trace.checkpoints.take(find)
        trace.release_until(find.start)
        place = trace.cut_point
        if place.in_fence:
            return None  # a cut would leave half a program, or half a string
        return self.consult(trace, trace.checkpoints.event(find, place.position, at))

    def _visit_interval(self, trace: Trace, at: float) -> Order | None:
        if not trace.checkpoints.is_interval_due(trace.cut_position):
            return None
        place = trace.cut_point
        if not trace.checkpoints.take_interval(place):
            return None
        return self.consult(trace, Checkpoint("interval", place.position, at))

    def _visit_deferred(self, trace: Trace, at: float) -> Order | None:
        """The query has brought no stop: visit the checkpoints that came meanwhile.

        Of each kind only the latest, where the most is known; all of its prefix is decoded already.
        Kinds take turns, or a frequent one would get every probe. A kind whose checkpoint lies
        before the cut point keeps its turn.
        """
        deferred = trace.checkpoints.deferred
        for kind, find in list(deferred.items()):
            if find is None:
                del deferred[kind]
                trace.release_settled()
                order = self._visit_interval(trace, at)
            elif find.start >= trace.cut_point.text_offset:
                order = self._visit(trace, find, at)
            else:
                continue
            if order is not None or self.is_done(trace):
                return order
        trace.release_settled()
        return None

    def _record_error(self, error: Exception) -> None:
        self.mute("policy-error")
        self.policy_error = error

    def _record_decode_rate(self, trace: Trace, at: float) -> None:
        if self.first_token_at is not None:
            tokens = trace.ledger.reasoning + trace.ledger.wasted
            self._cost_model.record_decoding(tokens, at - self.first_token_at)
