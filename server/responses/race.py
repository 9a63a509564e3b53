"""Several traces of one request, of which one is told: raced, or put to the vote.

Each trace is a relay with a session of its own, as if it were the only one; what it would tell the
client is kept. The policy sees how they do and opens more, gives some up or chooses one: then the
others are ended at the engine at once, and what was kept of that one goes out in one go, the rest
as it comes. Until then a stream gets comments that keep it alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

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
from adjourn.server.responses.trace_buffer import TraceBuffer
from adjourn.server.stream.sinks import Sink
from adjourn.server.stream.usage import summarize_session, token_counts
from adjourn.server.upstream.equality import EqualityChecker

__all__ = ["TraceRace"]

log = logging.getLogger("adjourn.conductor")

_MAX_TRACES = 128
_KEEP_ALIVE_COMMENT = b": racing\n\n"


class TraceRace:
    """``start`` makes the relay of a trace, which writes to its lane. ``keep_alive``: seconds
    between comments. ``reward`` asks the reward model about a thought, where there is one; None
    where it does not say. ``run`` raises GatewayError only while nothing was written."""

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
        self.chosen_times: Times | None = None  # of the chosen trace
        self._policy = policy
        self._sink = sink
        self._make_relay = make_relay
        self._equality = equality
        self._metrics = metrics
        self._labels = labels
        self._keep_alive = keep_alive
        self._request_reward = request_reward
        self._scoring_tasks: dict[int, asyncio.Task[None]] = {}
        self._traces: list[TraceBuffer] = []
        self._answer_classes = AnswerClasses()
        self._label_lock = asyncio.Lock()
        self._choose_command: ChooseTrace | None = None
        self._muted_reason: str | None = None
        self._refused_trace: TraceBuffer | None = None
        self._sink_opened = False
        self._race_over = asyncio.Event()
        self._sampler: Sampler = FirstFinishSampler(1)

    # -- the life of a response ----------------------------------------------------------------

    async def run(self) -> int:
        """The response's status."""
        try:
            self._start_sampler()
            await self._wait_until_over()
            if (lane := self.chosen) is None:
                return await self._respond_without_trace()
            await self._send_chosen_trace(lane)
            note = self.summarize()
        finally:
            # Before the response ends: then who carries it takes the client for gone.
            await self._clean_up()
        if lane.error is not None:
            return await self._fail(lane.error)
        await self._sink.end(note)
        return 200

    async def _send_chosen_trace(self, lane: TraceBuffer) -> None:
        assert lane.relay is not None
        assert lane.task is not None
        self.chosen_times = lane.relay.times
        self.chosen_times.first_write = time.perf_counter()
        await lane.start_forwarding()
        await lane.task

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
        """No trace is left. What the first of them was refused with is the response, else what
        the last one broke off with."""
        if (lane := self._refused_trace) is not None:
            assert lane.task is not None
            await lane.task
            return self.status
        errors = [lane.error for lane in self._traces if lane.error is not None]
        return await self._fail(errors[-1] if errors else interruption_error("broken"))

    async def _fail(self, error: GatewayError) -> int:
        if not self._sink.has_started:
            raise error  # who answers with it counts it
        if error.reason is not None:
            self._metrics.upstream_errors.labels(error.reason).inc()
        await self._sink.fail(error)
        return error.status

    async def _clean_up(self) -> None:
        tasks = [lane.task for lane in self._traces if lane.task is not None]
        tasks += self._scoring_tasks.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._traces:
            outcome = lane.outcome or "given-up"
            self._metrics.traces.labels(*self._labels, outcome).inc()
            if lane is not self.chosen:
                lane.session.ledger = lane.session.ledger.as_wasted
            lane.relay = lane.task = None
        # What is left must not keep each other: the collector would find it late.
        self._traces.clear()
        self._scoring_tasks.clear()
        self.chosen = self._refused_trace = None
        del self._make_relay, self._request_reward

    # -- what the lanes tell -------------------------------------------------------------------

    def on_opened(self, response: httpx.Response) -> None:
        if not self._sink_opened:
            self._sink_opened = True
            self._sink.open(response)

    async def on_refused(self, trace: TraceBuffer, response: httpx.Response) -> None:
        """The engine's answer is kept open until it is known whether it is the client's."""
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
        if (every := self._policy.report_interval) and not closed:
            self._report_position(trace, every)
        if closed and not trace.trace_closed:
            trace.trace_closed = True
            position = trace.session.ledger.reasoning
            self._notify_sampler(TraceClosed(trace.index, position, time.perf_counter()))

    def _report_confidence(self, lane: TraceBuffer, meter: ConfidenceMeter, closed: bool) -> None:
        lowest = meter.lowest if meter.window_filled or closed else None
        if lowest is not None and lowest != lane.lowest_confidence:
            lane.lowest_confidence = lowest
            self._notify_sampler(
                ConfidenceReport(lane.index, lowest, meter.lowest_position, time.perf_counter())
            )

    def _report_position(self, lane: TraceBuffer, every: int) -> None:
        position = lane.session.ledger.reasoning
        if position >= lane.last_reported_position + every:
            lane.last_reported_position = position // every * every
            self._notify_sampler(TokensReached(lane.index, position, time.perf_counter()))

    async def write(self, events: list[bytes]) -> None:
        await self._sink.write(events)

    async def _run_trace(self, lane: TraceBuffer) -> None:
        assert lane.relay is not None
        try:
            await lane.relay.run()
            if lane.outcome is None:
                await self._on_answered(lane)
        except GatewayError as error:
            lane.error = error
        except Exception as error:  # a fault of ours, which the other traces outlive
            log.exception("a trace: %s", type(error).__name__)
            self._metrics.fail_open.labels(self._labels[1], "internal-error").inc()
            lane.error = interruption_error("broken")
        if lane.error is not None:
            self._on_failed(lane)

    async def _on_answered(self, lane: TraceBuffer) -> None:
        text, answer = lane.read_answer()
        certainty = None
        if answer:
            async with self._label_lock:
                lane.answer_label = await self._equality.label_answer(self._answer_classes, answer)
            if self._policy.asks_if_correct and lane.relay is not None:
                certainty = await lane.relay.probe_certainty(text)
        lane.outcome = "answered"
        net, now = lane.session.ledger.net, time.perf_counter()
        self._notify_sampler(
            TraceAnswered(lane.index, answer, lane.answer_label, net, now, certainty)
        )

    def _on_failed(self, lane: TraceBuffer) -> None:
        if lane.outcome is None:
            lane.outcome = "failed"
            self._notify_sampler(TraceFailed(lane.index, time.perf_counter()))

    # -- what the policy says ------------------------------------------------------------------

    def _notify_sampler(self, event: SamplingEvent) -> None:
        if self._race_over.is_set():
            return
        try:
            self._execute(self._sampler.observe(event))
        except Exception as error:  # whatever a policy does wrong, the request is answered
            self._fail_open(error)
            self._execute(self._sampler.observe(event))
        over = not self._scoring_tasks and all(lane.outcome is not None for lane in self._traces)
        if over and not self._race_over.is_set():
            self._choose_fallback()

    def _fail_open(self, error: Exception) -> None:
        """The first trace that is there is the response, and no other is opened."""
        log.error("policy %s failed", self._labels[1], exc_info=error)
        self._metrics.fail_open.labels(self._labels[1], "policy-error").inc()
        self._muted_reason = "policy-error"
        self._sampler = FirstFinishSampler(0 if self._traces else 1)

    def _choose_fallback(self) -> None:
        """All traces are done, and none was chosen."""
        whole = [lane for lane in self._traces if lane.outcome == "answered"]
        if whole:
            self._execute([ChooseTrace(whole[0].index, "last")])
        else:
            self._race_over.set()

    def _execute(self, commands: Sequence[SamplingCommand]) -> None:
        for command in commands:
            match command:
                case OpenTraces(count):
                    for _ in range(min(count, _MAX_TRACES - len(self._traces))):
                        self._open_trace()
                case ScoreTrace(trace):
                    scoring = self._score_trace(self._traces[trace])
                    self._scoring_tasks[trace] = asyncio.ensure_future(scoring)
                case AbortTraces(traces):
                    for trace in traces:
                        self._abort_trace(self._traces[trace])
                case ChooseTrace(trace):
                    self._choose_trace(self._traces[trace], command)
                case _:
                    raise TypeError(f"{command!r} is no command")

    async def _score_trace(self, lane: TraceBuffer) -> None:
        position, reward = lane.session.ledger.reasoning, None
        try:
            assert self._request_reward is not None, "a policy that scores says so in its needs"
            reward = await self._request_reward(lane.read_reasoning())
        except Exception as error:  # a fault of ours is no worse than one of the reward model's
            log.exception("a reward: %s", type(error).__name__)
            self._metrics.fail_open.labels(self._labels[1], "internal-error").inc()
        lane.reward = lane.reward if reward is None else reward
        self._scoring_tasks.pop(lane.index, None)
        self._notify_sampler(TraceScored(lane.index, reward, position, time.perf_counter()))

    def _open_trace(self) -> None:
        trace: Policy = self._policy.trace_policy
        if self._policy.confidence_window:
            trace = ConfidenceMeter(trace, self._policy.confidence_window)
        lane = TraceBuffer(self, len(self._traces), trace)
        lane.relay = self._make_relay(lane.index, lane)
        self._traces.append(lane)
        lane.task = asyncio.ensure_future(self._run_trace(lane))

    def _abort_trace(self, lane: TraceBuffer) -> None:
        if lane.outcome is None and lane.task is not None:
            lane.outcome = "given-up"
            self._metrics.upstream_aborts.labels("lost").inc()
            lane.task.cancel()

    def _choose_trace(self, lane: TraceBuffer, choice: ChooseTrace) -> None:
        if lane.outcome not in (None, "answered"):
            raise ValueError(f"trace {lane.index} is {lane.outcome}")
        self.chosen, self._choose_command, lane.outcome = lane, choice, "chosen"
        for other in self._traces:
            self._abort_trace(other)
        self._race_over.set()

    # -- what the client is told ---------------------------------------------------------------

    def summarize(self) -> dict[str, Any]:
        """What was done: the choice, the tokens of all traces, and a note on each."""
        assert self.chosen is not None
        assert self._choose_command is not None
        spent = self.chosen.session.ledger
        for lane in self._traces:
            if lane is not self.chosen:
                spent += lane.session.ledger.as_wasted
        note: dict[str, Any] = {
            "stopped": self.chosen.session.stopped,
            "policy": self._policy.name,
            "reason": self._choose_command.reason,
            "chosen": self.chosen.index,
            "votes": self._choose_command.votes,
        }
        if self._choose_command.confidence is not None:
            note["confidence"] = round(self._choose_command.confidence, 6)
        if self._muted_reason is not None:
            note["muted"] = self._muted_reason
        note["tokens"] = token_counts(spent)
        note["traces"] = [self._summarize_trace(lane) for lane in self._traces]
        return note

    def _summarize_trace(self, lane: TraceBuffer) -> dict[str, Any]:
        note = {"outcome": lane.outcome, **summarize_session(lane.session)}
        note["policy"] = self._policy.trace_policy.name
        if lane.answer_label is not None:
            note["answer"] = lane.answer_label
        if lane.lowest_confidence is not None:
            note["lowest"] = round(lane.lowest_confidence, 6)
        if lane.reward is not None:
            note["reward"] = round(lane.reward, 6)
        return note
