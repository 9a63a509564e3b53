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

from policies.answers import Classes
from policies.first_finish import FirstFinishSampler
from policies.meter import Meter
from policies.policy import Policy
from policies.sampling import (
    Answered,
    Begun,
    Choose,
    Closed,
    Command,
    Event,
    Failed,
    GiveUp,
    Open,
    Reached,
    Sampler,
    Sampling,
    Score,
    Scored,
    Sureness,
)
from policies.states import State
from server.account import note_of, tokens_of
from server.equality import Equality
from server.errors import GatewayError, broken_off
from server.lane import Lane
from server.metrics import Metrics
from server.relay import Relay
from server.sinks import Sink
from server.times import Times

__all__ = ["Conductor"]

log = logging.getLogger("adjourn.conductor")

_MOST = 128
_COMMENT = b": racing\n\n"


class Conductor:
    """``start`` makes the relay of a trace, which writes to its lane. ``keep_alive``: seconds
    between comments. ``reward`` asks the reward model about a thought, where there is one; None
    where it does not say. ``run`` raises GatewayError only while nothing was written."""

    def __init__(
        self,
        policy: Sampling,
        sink: Sink,
        start: Callable[[int, Lane], Relay],
        equality: Equality,
        metrics: Metrics,
        labels: tuple[str, str],
        keep_alive: float,
        reward: Callable[[str], Awaitable[float | None]] | None = None,
    ) -> None:
        self.chosen: Lane | None = None
        self.status = 200
        self.told: Times | None = None  # of the chosen trace
        self._policy = policy
        self._sink = sink
        self._start = start
        self._equality = equality
        self._metrics = metrics
        self._labels = labels
        self._keep_alive = keep_alive
        self._reward = reward
        self._scoring: dict[int, asyncio.Task[None]] = {}
        self._lanes: list[Lane] = []
        self._classes = Classes()
        self._labelling = asyncio.Lock()
        self._choice: Choose | None = None
        self._muted: str | None = None
        self._refusal: Lane | None = None
        self._opened = False
        self._over = asyncio.Event()
        self._sampler: Sampler = FirstFinishSampler(1)

    # -- the life of a response ----------------------------------------------------------------

    async def run(self) -> int:
        """The response's status."""
        try:
            self._begin()
            await self._wait()
            if (lane := self.chosen) is None:
                return await self._lost()
            await self._tell(lane)
            note = self.note()
        finally:
            # Before the response ends: then who carries it takes the client for gone.
            await self._close()
        if lane.error is not None:
            return await self._fail(lane.error)
        await self._sink.end(note)
        return 200

    async def _tell(self, lane: Lane) -> None:
        assert lane.relay is not None
        assert lane.task is not None
        self.told = lane.relay.times
        self.told.first_write = time.perf_counter()
        await lane.tell()
        await lane.task

    def _begin(self) -> None:
        try:
            self._sampler = self._policy.sample()
        except Exception as error:
            self._fail_open(error)
        self._show(Begun(time.perf_counter()))

    async def _wait(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._keep_alive):
                    await self._over.wait()
            if self._opened and not self._over.is_set():
                await self._sink.write([_COMMENT])

    async def _lost(self) -> int:
        """No trace is left. What the first of them was refused with is the response, else what
        the last one broke off with."""
        if (lane := self._refusal) is not None:
            assert lane.task is not None
            await lane.task
            return self.status
        errors = [lane.error for lane in self._lanes if lane.error is not None]
        return await self._fail(errors[-1] if errors else broken_off("broken"))

    async def _fail(self, error: GatewayError) -> int:
        if not self._sink.began:
            raise error  # who answers with it counts it
        if error.reason is not None:
            self._metrics.upstream_errors.labels(error.reason).inc()
        await self._sink.fail(error)
        return error.status

    async def _close(self) -> None:
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        tasks += self._scoring.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes:
            outcome = lane.outcome or "given-up"
            self._metrics.traces.labels(*self._labels, outcome).inc()
            if lane is not self.chosen:
                lane.session.ledger = lane.session.ledger.forfeited
            lane.relay = lane.task = None
        # What is left must not keep each other: the collector would find it late.
        self._lanes.clear()
        self._scoring.clear()
        self.chosen = self._refusal = None
        del self._start, self._reward

    # -- what the lanes tell -------------------------------------------------------------------

    def opened(self, response: httpx.Response) -> None:
        if not self._opened:
            self._opened = True
            self._sink.open(response)

    async def refused(self, lane: Lane, response: httpx.Response) -> None:
        """The engine's answer is kept open until it is known whether it is the client's."""
        first = self._refusal is None
        if first:
            self._refusal = lane
        self._failed(lane)
        if first:
            await self._over.wait()
            if self.chosen is None and not self._sink.began:
                self.status = response.status_code
                await self._sink.hand_through(response)

    def look(self, lane: Lane) -> None:
        if lane.outcome is not None:
            return
        closed = lane.session.state in (State.ANSWERING, State.DONE)
        if isinstance(lane.policy, Meter) and not lane.closed:
            self._measure(lane, lane.policy, closed)
        if (every := self._policy.every) and not closed:
            self._reach(lane, every)
        if closed and not lane.closed:
            lane.closed = True
            position = lane.session.ledger.reasoning
            self._show(Closed(lane.index, position, time.perf_counter()))

    def _measure(self, lane: Lane, meter: Meter, closed: bool) -> None:
        lowest = meter.lowest if meter.whole or closed else None
        if lowest is not None and lowest != lane.lowest:
            lane.lowest = lowest
            self._show(Sureness(lane.index, lowest, meter.position, time.perf_counter()))

    def _reach(self, lane: Lane, every: int) -> None:
        position = lane.session.ledger.reasoning
        if position >= lane.goal + every:
            lane.goal = position // every * every
            self._show(Reached(lane.index, position, time.perf_counter()))

    async def write(self, events: list[bytes]) -> None:
        await self._sink.write(events)

    async def _carry(self, lane: Lane) -> None:
        assert lane.relay is not None
        try:
            await lane.relay.run()
            if lane.outcome is None:
                await self._answered(lane)
        except GatewayError as error:
            lane.error = error
        except Exception as error:  # a fault of ours, which the other traces outlive
            log.exception("a trace: %s", type(error).__name__)
            self._metrics.fail_open.labels(self._labels[1], "internal-error").inc()
            lane.error = broken_off("broken")
        if lane.error is not None:
            self._failed(lane)

    async def _answered(self, lane: Lane) -> None:
        text, answer = lane.answer()
        certainty = None
        if answer:
            async with self._labelling:
                lane.label = await self._equality.label(self._classes, answer)
            if self._policy.asks and lane.relay is not None:
                certainty = await lane.relay.certainty(text)
        lane.outcome = "answered"
        net, now = lane.session.ledger.net, time.perf_counter()
        self._show(Answered(lane.index, answer, lane.label, net, now, certainty))

    def _failed(self, lane: Lane) -> None:
        if lane.outcome is None:
            lane.outcome = "failed"
            self._show(Failed(lane.index, time.perf_counter()))

    # -- what the policy says ------------------------------------------------------------------

    def _show(self, event: Event) -> None:
        if self._over.is_set():
            return
        try:
            self._obey(self._sampler.observe(event))
        except Exception as error:  # whatever a policy does wrong, the request is answered
            self._fail_open(error)
            self._obey(self._sampler.observe(event))
        over = not self._scoring and all(lane.outcome is not None for lane in self._lanes)
        if over and not self._over.is_set():
            self._settle()

    def _fail_open(self, error: Exception) -> None:
        """The first trace that is there is the response, and no other is opened."""
        log.error("policy %s failed", self._labels[1], exc_info=error)
        self._metrics.fail_open.labels(self._labels[1], "policy-error").inc()
        self._muted = "policy-error"
        self._sampler = FirstFinishSampler(0 if self._lanes else 1)

    def _settle(self) -> None:
        """All traces are done, and none was chosen."""
        whole = [lane for lane in self._lanes if lane.outcome == "answered"]
        if whole:
            self._obey([Choose(whole[0].index, "last")])
        else:
            self._over.set()

    def _obey(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Open(count):
                    for _ in range(min(count, _MOST - len(self._lanes))):
                        self._open()
                case Score(trace):
                    scoring = self._score(self._lanes[trace])
                    self._scoring[trace] = asyncio.ensure_future(scoring)
                case GiveUp(traces):
                    for trace in traces:
                        self._give_up(self._lanes[trace])
                case Choose(trace):
                    self._choose(self._lanes[trace], command)
                case _:
                    raise TypeError(f"{command!r} is no command")

    async def _score(self, lane: Lane) -> None:
        position, reward = lane.session.ledger.reasoning, None
        try:
            assert self._reward is not None, "a policy that scores says so in its needs"
            reward = await self._reward(lane.thought())
        except Exception as error:  # a fault of ours is no worse than one of the reward model's
            log.exception("a reward: %s", type(error).__name__)
            self._metrics.fail_open.labels(self._labels[1], "internal-error").inc()
        lane.reward = lane.reward if reward is None else reward
        self._scoring.pop(lane.index, None)
        self._show(Scored(lane.index, reward, position, time.perf_counter()))

    def _open(self) -> None:
        trace: Policy = self._policy.trace
        if self._policy.span:
            trace = Meter(trace, self._policy.span)
        lane = Lane(self, len(self._lanes), trace)
        lane.relay = self._start(lane.index, lane)
        self._lanes.append(lane)
        lane.task = asyncio.ensure_future(self._carry(lane))

    def _give_up(self, lane: Lane) -> None:
        if lane.outcome is None and lane.task is not None:
            lane.outcome = "given-up"
            self._metrics.aborts.labels("lost").inc()
            lane.task.cancel()

    def _choose(self, lane: Lane, choice: Choose) -> None:
        if lane.outcome not in (None, "answered"):
            raise ValueError(f"trace {lane.index} is {lane.outcome}")
        self.chosen, self._choice, lane.outcome = lane, choice, "chosen"
        for other in self._lanes:
            self._give_up(other)
        self._over.set()

    # -- what the client is told ---------------------------------------------------------------

    def note(self) -> dict[str, Any]:
        """What was done: the choice, the tokens of all traces, and a note on each."""
        assert self.chosen is not None
        assert self._choice is not None
        spent = self.chosen.session.ledger
        for lane in self._lanes:
            if lane is not self.chosen:
                spent += lane.session.ledger.forfeited
        note: dict[str, Any] = {
            "stopped": self.chosen.session.stopped,
            "policy": self._policy.name,
            "reason": self._choice.reason,
            "chosen": self.chosen.index,
            "votes": self._choice.votes,
        }
        if self._choice.confidence is not None:
            note["confidence"] = round(self._choice.confidence, 6)
        if self._muted is not None:
            note["muted"] = self._muted
        note["tokens"] = tokens_of(spent)
        note["traces"] = [self._note_of(lane) for lane in self._lanes]
        return note

    def _note_of(self, lane: Lane) -> dict[str, Any]:
        note = {"outcome": lane.outcome, **note_of(lane.session)}
        note["policy"] = self._policy.trace.name
        if lane.label is not None:
            note["answer"] = lane.label
        if lane.lowest is not None:
            note["lowest"] = round(lane.lowest, 6)
        if lane.reward is not None:
            note["reward"] = round(lane.reward, 6)
        return note
