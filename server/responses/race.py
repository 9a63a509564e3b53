"""Run several traces of one request and send one of them: the fastest, or the one with most votes.

Each trace has its own relay and session, as if it were the only one; what it would send to the
client is kept in a ``TraceBuffer``. The policy follows the traces and opens more, aborts some or
chooses one. Then the others are aborted at the engine at once, the kept events of the chosen one
are sent in one write, and the rest as it arrives. Until then a stream gets SSE comments that keep
the connection alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from adjourn.policies.evidence.answers import AnswerClasses
from adjourn.policies.parallel.confidence_meter import ConfidenceMeter
from adjourn.policies.parallel.first_finish import FirstFinishSampler
from adjourn.policies.policy import Policy
from adjourn.policies.sampling import (
    AbortTraces,
    ChooseTrace,
    ConfidenceReport,
    OpenTraces,
    RequestStarted,
    Sampler,
    SamplingCommand,
    SamplingEvent,
    SamplingPolicy,
    ScoreTrace,
    TokensReached,
    TraceAnswered,
    TraceClosed,
    TraceFailed,
    TraceScored,
)
from adjourn.policies.session.states import State
from adjourn.server.errors import GatewayError, interruption_error
from adjourn.server.metrics import Metrics
from adjourn.server.relay.relay import Relay
from adjourn.server.relay.times import Times
from adjourn.server.responses.race_summary import summarize_race
from adjourn.server.responses.trace_buffer import TraceBuffer
from adjourn.server.stream.sinks import Sink
from adjourn.server.upstream import http
from adjourn.server.upstream.equality import EqualityChecker

__all__ = ["TraceRace"]

log = logging.getLogger("adjourn.race")

_MAX_TRACES = 128
_KEEP_ALIVE_COMMENT = b": racing\n\n"


class TraceRace:
    """Runs the traces of one request under a sampling policy. ``run`` may be called once.

    ``make_relay`` creates the relay of a trace, which writes to the given buffer. ``labels`` are
    (model, policy). ``keep_alive``: seconds between comments. ``request_reward`` asks the reward
    model about a reasoning trace, if one is configured; its result is None if there is no score.

    State: the traces by index and their scoring tasks, changed only by the sampler's commands
    (``_execute``) and by ``_clean_up``. ``chosen`` is set once. ``_refused_trace`` is the first
    trace that the engine refused. ``_sampler`` is replaced once, if the policy fails.
    """

    def __init__(
        self,
        policy: SamplingPolicy,
        sink: Sink,
        make_relay: Callable[[int, TraceBuffer], Relay],
        equality: EqualityChecker,
        metrics: Metrics,
        labels: tuple[str, str],
        keep_alive: float,
        request_reward: Callable[[str], Awaitable[float | None]] | None = None,
    ) -> None:
        self.chosen: TraceBuffer | None = None
        self.status = 200
        self.chosen_times: Times | None = None
        self._policy = policy
        self._sink = sink
        self._make_relay = make_relay
        self._answer_labels = _AnswerLabels(equality)
        self._metrics = metrics
        self._labels = labels
        self._keep_alive = keep_alive
        self._request_reward = request_reward
        self._scoring_tasks: dict[int, asyncio.Task[None]] = {}
        self._traces: list[TraceBuffer] = []
        self._choose_command: ChooseTrace | None = None
        self._muted_reason: str | None = None
        self._refused_trace: TraceBuffer | None = None
        self._sink_opened = False
        self._race_over = asyncio.Event()
        self._sampler: Sampler = FirstFinishSampler(1)

    async def run(self) -> int:
        """Send the response and return its status. Raises GatewayError only before any write."""
        try:
            self._start_sampler()
            await self._wait_until_over()
            if (chosen := self.chosen) is None:
                return await self._respond_without_trace()
            await self._send_chosen_trace(chosen)
            summary = self.summarize()
        finally:
            # Before the response ends: after that, the connection is taken for a client that left.
            await self._clean_up()
        if chosen.error is not None:
            return await self._fail(chosen.error)
        await self._sink.end(summary)
        return 200

    async def _send_chosen_trace(self, trace: TraceBuffer) -> None:
        assert trace.relay is not None
        assert trace.task is not None
        self.chosen_times = trace.relay.times
        self.chosen_times.first_write = time.perf_counter()
        await trace.start_forwarding()
        await trace.task

    def _start_sampler(self) -> None:
        try:
            self._sampler = self._policy.start_sampler()
        except Exception as error:
            self._fail_open(error)
        self._notify_sampler(RequestStarted(time.perf_counter()))

    async def _wait_until_over(self) -> None:
        while not self._race_over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._keep_alive):
                    await self._race_over.wait()
            if self._sink_opened and not self._race_over.is_set():
                await self._sink.write([_KEEP_ALIVE_COMMENT])

    async def _respond_without_trace(self) -> int:
        """No trace is left: answer with the engine's first refusal, else with the last error."""
        if (trace := self._refused_trace) is not None:
            assert trace.task is not None
            await trace.task
            return self.status
        errors = [trace.error for trace in self._traces if trace.error is not None]
        return await self._fail(errors[-1] if errors else interruption_error("broken"))

    async def _fail(self, error: GatewayError) -> int:
        if not self._sink.has_started:
            raise error  # counted by the caller that answers with it
        if error.reason is not None:
            self._metrics.upstream_errors.labels(error.reason).inc()
        await self._sink.fail(error)
        return error.status

    async def _clean_up(self) -> None:
        tasks = [trace.task for trace in self._traces if trace.task is not None]
        tasks += self._scoring_tasks.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for trace in self._traces:
            outcome = trace.outcome or "given-up"
            self._metrics.traces.labels(*self._labels, outcome).inc()
            if trace is not self.chosen:
                trace.session.ledger = trace.session.ledger.as_wasted
            trace.relay = trace.task = None
        # Break reference cycles, so that memory is freed without the garbage collector.
        self._traces.clear()
        self._scoring_tasks.clear()
        self.chosen = self._refused_trace = None
        del self._make_relay, self._request_reward

    def on_opened(self, response: http.Response) -> None:
        if not self._sink_opened:
            self._sink_opened = True
            self._sink.open(response)

    async def on_refused(self, trace: TraceBuffer, response: http.Response) -> None:
        """The engine refused the trace. Keep the first refusal open until the race is over: the
        client gets it if no trace was chosen."""
        first = self._refused_trace is None
        if first:
            self._refused_trace = trace
        self._on_failed(trace)
        if first:
            await self._race_over.wait()
            if self.chosen is None and not self._sink.has_started:
                self.status = response.status_code
                await self._sink.forward_response(response)

    def on_progress(self, trace: TraceBuffer) -> None:
        if trace.outcome is not None:
            return
        closed = trace.session.state in (State.ANSWERING, State.DONE)
        if isinstance(trace.policy, ConfidenceMeter) and not trace.trace_closed:
            self._report_confidence(trace, trace.policy, closed)
        if (interval := self._policy.report_interval) and not closed:
            self._report_position(trace, interval)
        if closed and not trace.trace_closed:
            trace.trace_closed = True
            position = trace.session.ledger.reasoning
            self._notify_sampler(TraceClosed(trace.index, position, time.perf_counter()))

    def _report_confidence(self, trace: TraceBuffer, meter: ConfidenceMeter, closed: bool) -> None:
        lowest = meter.lowest if meter.window_filled or closed else None
        if lowest is not None and lowest != trace.lowest_confidence:
            trace.lowest_confidence = lowest
            self._notify_sampler(
                ConfidenceReport(trace.index, lowest, meter.lowest_position, time.perf_counter())
            )

    def _report_position(self, trace: TraceBuffer, interval: int) -> None:
        position = trace.session.ledger.reasoning
        if position >= trace.last_reported_position + interval:
            trace.last_reported_position = position // interval * interval
            self._notify_sampler(TokensReached(trace.index, position, time.perf_counter()))

    async def write(self, events: list[bytes]) -> None:
        await self._sink.write(events)

    async def _run_trace(self, trace: TraceBuffer) -> None:
        assert trace.relay is not None
        try:
            await trace.relay.run()
            if trace.outcome is None:
                await self._on_answered(trace)
        except GatewayError as error:
            trace.error = error
        except Exception as error:  # a bug in the gateway must not end the other traces
            log.exception("running a trace failed: %s", type(error).__name__)
            self._metrics.fail_open.labels(self._labels[1], "internal-error").inc()
            trace.error = interruption_error("broken")
        if trace.error is not None:
            self._on_failed(trace)

    async def _on_answered(self, trace: TraceBuffer) -> None:
        text, answer = trace.read_answer()
        certainty = None
        if answer:
            trace.answer_label = await self._answer_labels.label(answer)
            if self._policy.asks_if_correct and trace.relay is not None:
                certainty = await trace.relay.probe_certainty(text)
        trace.outcome = "answered"
        net, now = trace.session.ledger.net, time.perf_counter()
        self._notify_sampler(
            TraceAnswered(trace.index, answer, trace.answer_label, net, now, certainty)
        )

    def _on_failed(self, trace: TraceBuffer) -> None:
        if trace.outcome is None:
            trace.outcome = "failed"
            self._notify_sampler(TraceFailed(trace.index, time.perf_counter()))

    def _notify_sampler(self, event: SamplingEvent) -> None:
        """Show an event to the sampler and execute its commands."""
        if self._race_over.is_set():
            return
        try:
            self._execute(self._sampler.observe(event))
        except Exception as error:  # fail open: the request is answered whatever the policy does
            self._fail_open(error)
            self._execute(self._sampler.observe(event))
        over = not self._scoring_tasks and all(t.outcome is not None for t in self._traces)
        if over and not self._race_over.is_set():
            self._choose_fallback()

    def _fail_open(self, error: Exception) -> None:
        """Replace the sampler: the first trace that finishes is the response, and no more traces
        are opened than are needed for that."""
        log.error("policy %s failed", self._labels[1], exc_info=error)
        self._metrics.fail_open.labels(self._labels[1], "policy-error").inc()
        self._muted_reason = "policy-error"
        self._sampler = FirstFinishSampler(0 if self._traces else 1)

    def _choose_fallback(self) -> None:
        """All traces have ended and the policy chose none: choose the first that answered."""
        answered = [trace for trace in self._traces if trace.outcome == "answered"]
        if answered:
            self._execute([ChooseTrace(answered[0].index, "last")])
        else:
            self._race_over.set()

    def _execute(self, commands: Sequence[SamplingCommand]) -> None:
        for command in commands:
            match command:
                case OpenTraces(count):
                    for _ in range(min(count, _MAX_TRACES - len(self._traces))):
                        self._open_trace()
                case ScoreTrace(index):
                    scoring = self._score_trace(self._traces[index])
                    self._scoring_tasks[index] = asyncio.ensure_future(scoring)
                case AbortTraces(indexes):
                    for index in indexes:
                        self._abort_trace(self._traces[index])
                case ChooseTrace(index):
                    self._choose_trace(self._traces[index], command)
                case _:
                    raise TypeError(f"{command!r} is not a sampling command")

    async def _score_trace(self, trace: TraceBuffer) -> None:
        position, reward = trace.session.ledger.reasoning, None
        try:
            assert self._request_reward is not None, "needs.rewards is not declared"
            reward = await self._request_reward(trace.read_reasoning())
        except Exception as error:  # a bug in the gateway counts as a reward model that failed
            log.exception("scoring a trace failed: %s", type(error).__name__)
            self._metrics.fail_open.labels(self._labels[1], "internal-error").inc()
        trace.reward = trace.reward if reward is None else reward
        self._scoring_tasks.pop(trace.index, None)
        self._notify_sampler(TraceScored(trace.index, reward, position, time.perf_counter()))

    def _open_trace(self) -> None:
        policy: Policy = self._policy.trace_policy
        if self._policy.confidence_window:
            policy = ConfidenceMeter(policy, self._policy.confidence_window)
        trace = TraceBuffer(self, len(self._traces), policy)
        trace.relay = self._make_relay(trace.index, trace)
        self._traces.append(trace)
        trace.task = asyncio.ensure_future(self._run_trace(trace))

    def _abort_trace(self, trace: TraceBuffer) -> None:
        if trace.outcome is None and trace.task is not None:
            trace.outcome = "given-up"
            self._metrics.upstream_aborts.labels("lost").inc()
            trace.task.cancel()

    def _choose_trace(self, trace: TraceBuffer, command: ChooseTrace) -> None:
        if trace.outcome not in (None, "answered"):
            raise ValueError(f"trace {trace.index} cannot be chosen: it is {trace.outcome}")
        self.chosen, self._choose_command, trace.outcome = trace, command, "chosen"
        for other in self._traces:
            self._abort_trace(other)
        self._race_over.set()

    def summarize(self) -> dict[str, Any]:
        """The client's summary of the race. A trace must have been chosen."""
        assert self.chosen is not None
        assert self._choose_command is not None
        return summarize_race(
            self._policy, self._traces, self.chosen, self._choose_command, self._muted_reason
        )


class _AnswerLabels:
    """Gives equal answers the same label, a number from 0.

    State: the classes of the answers so far. The lock lets one ``label`` change them at a time,
    as comparing two answers may await another process.
    """

    def __init__(self, equality: EqualityChecker) -> None:
        self._equality = equality
        self._classes = AnswerClasses()
        self._lock = asyncio.Lock()

    async def label(self, answer: str) -> int:
        async with self._lock:
            return await self._equality.label_answer(self._classes, answer)
