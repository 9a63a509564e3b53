"""The conductor and its lanes, before relays that say what they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import httpx
import msgspec
import pytest

from adjourn.policies.sampling import (
    ChooseTrace,
    OpenTraces,
    RequestStarted,
    SamplingCommand,
    SamplingEvent,
    SamplingPolicy,
    ScoreTrace,
    TraceAnswered,
    TraceScored,
)
from adjourn.policies.session.session import Session
from adjourn.server.errors import GatewayError, UpstreamDown
from adjourn.server.metrics import Metrics
from adjourn.server.relay.times import Times
from adjourn.server.responses.race import TraceRace
from adjourn.server.responses.trace_buffer import TraceBuffer
from adjourn.server.stream.chunk import encode_event
from adjourn.server.upstream.equality import EqualityChecker
from tests.policies.session_helpers import DIALECT, PROMPT, AlwaysProbe


class Gathering:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.has_started = False
        self.events: list[bytes] = []
        self.summary: dict[str, Any] | None = None

    def open(self, response: httpx.Response) -> None: ...

    async def forward_response(self, response: httpx.Response) -> None: ...

    async def write(self, events: list[bytes]) -> None:
        self.has_started = True
        self.events += events

    async def end(self, summary: dict[str, Any] | None) -> None:
        self.summary = summary

    async def fail(self, error: GatewayError) -> None:
        raise error


class Speaker:
    """A relay whose whole response comes after so many turns of the loop."""

    def __init__(self, lane: TraceBuffer, delta: dict[str, Any] | GatewayError, turns: int) -> None:
        self.session = Session(lane.policy, DIALECT, AlwaysProbe())
        self.times = Times(0.0)
        self._lane, self._delta, self._turns = lane, delta, turns

    async def run(self) -> None:
        for _ in range(self._turns):
            await asyncio.sleep(0)
        if isinstance(self._delta, GatewayError):
            raise self._delta
        self._lane.open(httpx.Response(200))
        self.session.on_prompt(PROMPT[:1])
        self.session.feed("", (7,), 0.0, answering=True)
        chunk = {"id": f"x-{self._lane.index}", "created": 1, "adjourn": {}}
        choice = {"index": 0, "delta": self._delta, "finish_reason": "stop"}
        await self._lane.write([encode_event(msgspec.json.encode({"choices": [choice], **chunk}))])
        self.session.on_stream_end()


def conducted(
    policy: SamplingPolicy,
    *said: dict[str, Any] | GatewayError,
    turns: Sequence[int] = (),
    reward: Callable[[str], Awaitable[float | None]] | None = None,
) -> tuple[Gathering, Metrics]:
    sink, metrics = Gathering(), Metrics()

    def start(index: int, lane: TraceBuffer) -> Any:
        return Speaker(lane, said[index], turns[index] if turns else 1 + index)

    labels = "m", policy.name
    conductor = TraceRace(policy, sink, start, EqualityChecker(), metrics, labels, 5.0, reward)
    asyncio.run(asyncio.wait_for(conductor.run(), 10))
    return sink, metrics


@dataclass(frozen=True, slots=True)
class Majority(SamplingPolicy):
    """Waits for all of them."""

    name: ClassVar[str] = "majority"
    traces: int = 3

    def start_sampler(self) -> MajoritySampler:
        return MajoritySampler(self.traces)


class MajoritySampler:
    def __init__(self, traces: int) -> None:
        self.traces = traces
        self.labels: dict[int, int | None] = {}

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        if isinstance(event, RequestStarted):
            return (OpenTraces(self.traces),)
        if isinstance(event, TraceAnswered):
            self.labels[event.trace] = event.label
            if len(self.labels) == self.traces:
                told = list(self.labels.values())
                chosen = max(self.labels, key=lambda trace: told.count(self.labels[trace]))
                return (ChooseTrace(chosen, "majority", votes=told.count(self.labels[chosen])),)
        return ()


def called(arguments: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": function}]}


def test_tool_calls_vote_by_what_they_call() -> None:
    """Order and spacing of arguments are no matter; their values are."""
    bern, other = '{"city": "Bern", "days": 2}', '{"days":2,"city":"Bern"}'
    sink, _ = conducted(Majority(), called('{"city": "Basel"}'), called(bern), called(other))
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["votes"]) == (1, 2)


def test_arguments_that_are_no_json_are_compared_as_text() -> None:
    """And are no error."""
    sink, _ = conducted(Majority(), called('{"ci'), called('{"ci'), called("{}"))
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["votes"]) == (0, 2)


class Faulty(Majority):
    """Fails where it is told to."""

    at: ClassVar[type] = RequestStarted

    def start_sampler(self) -> Any:
        return self

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        if isinstance(event, self.at):
            raise RuntimeError
        return (OpenTraces(2),) if isinstance(event, RequestStarted) else ()


class FaultyLate(Faulty):
    at = TraceAnswered


@pytest.mark.parametrize("kind", [Faulty, FaultyLate])
def test_a_policy_that_fails_is_outlived(kind: type[SamplingPolicy]) -> None:
    """The first trace that is there is the response; that is counted and told."""
    sink, metrics = conducted(kind(), {"content": "1"}, {"content": "2"})
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["muted"]) == (0, "policy-error")
    assert b'"content":"1"' in sink.events[0]
    errors = metrics.registry.get_sample_value(
        "adjourn_fail_open_total", {"policy": "majority", "reason": "policy-error"}
    )
    assert errors == 1


class Silent(Faulty):
    """Opens two and never chooses."""

    at = ChooseTrace


def test_a_policy_that_never_chooses_is_chosen_for() -> None:
    """The first trace that answered, once none is left to wait for."""
    sink, _ = conducted(Silent(), UpstreamDown("gone"), {"content": "2"}, turns=(1, 2))
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["reason"]) == (1, "last")


class Judging(Majority):
    """Scores each answer, and chooses when it has heard of both."""

    def start_sampler(self) -> Any:
        told: list[TraceScored] = []

        class Sampler:
            def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
                if isinstance(event, RequestStarted):
                    return (OpenTraces(2),)
                if isinstance(event, TraceAnswered):
                    return (ScoreTrace(event.trace),)
                if isinstance(event, TraceScored):
                    told.append(event)
                best = max(told, key=lambda one: one.reward or 0.0, default=None)
                return (ChooseTrace(best.trace, "best"),) if best and len(told) == 2 else ()

        return Sampler()


def test_a_reward_is_waited_for() -> None:
    """All traces are done, but the policy still hears of them."""

    async def slow(thought: str) -> float:
        await asyncio.sleep(0.01)
        return {"1": 0.1, "2": 0.9}[thought]

    sink, _ = conducted(Judging(), {"content": "1"}, {"content": "2"}, reward=slow)
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["reason"]) == (1, "best")
    assert [trace["reward"] for trace in sink.summary["traces"]] == [0.1, 0.9]


@pytest.mark.parametrize("there", [True, False])
def test_a_reward_that_fails_is_outlived(there: bool) -> None:
    """A fault of ours, or a policy that did not say that it scores: it hears of no reward."""

    async def broken(thought: str) -> float:
        raise RuntimeError

    sink, metrics = conducted(
        Judging(), {"content": "1"}, {"content": "2"}, reward=broken if there else None
    )
    assert sink.summary is not None
    assert sink.summary["reason"] == "best"
    errors = metrics.registry.get_sample_value(
        "adjourn_fail_open_total", {"policy": "majority", "reason": "internal-error"}
    )
    assert errors == 2


def test_without_an_answer_the_error_is_the_clients() -> None:
    """The last one's, where nothing was sent."""
    with pytest.raises(UpstreamDown):
        conducted(Silent(), UpstreamDown("gone"), UpstreamDown("gone"))
