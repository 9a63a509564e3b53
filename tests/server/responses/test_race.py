"""TraceRace and its buffers, with fake relays that send a given response."""

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


class RecordingSink:
    """A sink that keeps the events and the summary."""

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


class FakeRelay:
    """A relay that writes its whole response, or fails, after ``turns`` turns of the event loop."""

    def __init__(
        self, buffer: TraceBuffer, delta: dict[str, Any] | GatewayError, turns: int
    ) -> None:
        self.session = Session(buffer.policy, DIALECT, AlwaysProbe())
        self.times = Times(0.0)
        self._buffer, self._delta, self._turns = buffer, delta, turns

    async def run(self) -> None:
        for _ in range(self._turns):
            await asyncio.sleep(0)
        if isinstance(self._delta, GatewayError):
            raise self._delta
        self._buffer.open(httpx.Response(200))
        self.session.on_prompt(PROMPT[:1])
        self.session.feed("", (7,), 0.0, answering=True)
        chunk = {"id": f"x-{self._buffer.index}", "created": 1, "adjourn": {}}
        choice = {"index": 0, "delta": self._delta, "finish_reason": "stop"}
        event = encode_event(msgspec.json.encode({"choices": [choice], **chunk}))
        await self._buffer.write([event])
        self.session.on_stream_end()


def run_race(
    policy: SamplingPolicy,
    *deltas: dict[str, Any] | GatewayError,
    turns: Sequence[int] = (),
    reward: Callable[[str], Awaitable[float | None]] | None = None,
) -> tuple[RecordingSink, Metrics]:
    """Run a race in which each trace answers with the delta of its index, or fails with it."""
    sink, metrics = RecordingSink(), Metrics()

    def make_relay(index: int, buffer: TraceBuffer) -> Any:
        return FakeRelay(buffer, deltas[index], turns[index] if turns else 1 + index)

    labels = "m", policy.name
    race = TraceRace(policy, sink, make_relay, EqualityChecker(), metrics, labels, 5.0, reward)
    asyncio.run(asyncio.wait_for(race.run(), 10))
    return sink, metrics


@dataclass(frozen=True, slots=True)
class Majority(SamplingPolicy):
    """Waits for all traces and chooses the most frequent answer."""

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
                labels = list(self.labels.values())
                chosen = max(self.labels, key=lambda trace: labels.count(self.labels[trace]))
                return (ChooseTrace(chosen, "majority", votes=labels.count(self.labels[chosen])),)
        return ()


def tool_call(arguments: str) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"tool_calls": [{"index": 0, "id": "call-1", "type": "function", "function": function}]}


def test_equal_tool_calls_vote_for_each_other() -> None:
    """Only the values of arguments count, not their order or spacing."""
    bern, reordered = '{"city": "Bern", "days": 2}', '{"days":2,"city":"Bern"}'
    calls = [tool_call(arguments) for arguments in ('{"city": "Basel"}', bern, reordered)]
    sink, _ = run_race(Majority(), *calls)
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["votes"]) == (1, 2)


def test_arguments_that_are_not_json_are_compared_as_text() -> None:
    """They cause no error."""
    sink, _ = run_race(Majority(), tool_call('{"ci'), tool_call('{"ci'), tool_call("{}"))
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["votes"]) == (0, 2)


class Failing(Majority):
    """Opens two traces; fails at events of the type ``fails_at``."""

    fails_at: ClassVar[type] = RequestStarted

    def start_sampler(self) -> Any:
        return self

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        if isinstance(event, self.fails_at):
            raise RuntimeError
        return (OpenTraces(2),) if isinstance(event, RequestStarted) else ()


class FailingAtAnswer(Failing):
    fails_at = TraceAnswered


@pytest.mark.parametrize("policy", [Failing, FailingAtAnswer])
def test_the_first_trace_is_the_response_if_the_policy_fails(policy: type[SamplingPolicy]) -> None:
    """The failure is counted and stated in the summary."""
    sink, metrics = run_race(policy(), {"content": "1"}, {"content": "2"})
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["muted"]) == (0, "policy-error")
    assert b'"content":"1"' in sink.events[0]
    errors = metrics.registry.get_sample_value(
        "adjourn_fail_open_total", {"policy": "majority", "reason": "policy-error"}
    )
    assert errors == 1


class NeverChooses(Failing):
    """Opens two traces and never chooses one."""

    fails_at = ChooseTrace  # which is no event


def test_the_gateway_chooses_if_the_policy_does_not() -> None:
    """It takes the first trace that answered, once all have ended."""
    sink, _ = run_race(NeverChooses(), UpstreamDown("gone"), {"content": "2"}, turns=(1, 2))
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["reason"]) == (1, "last")


class BestScore(Majority):
    """Scores each of two answers, and chooses the best when both scores are known."""

    def start_sampler(self) -> Any:
        scores: list[TraceScored] = []

        class Sampler:
            def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
                if isinstance(event, RequestStarted):
                    return (OpenTraces(2),)
                if isinstance(event, TraceAnswered):
                    return (ScoreTrace(event.trace),)
                if isinstance(event, TraceScored):
                    scores.append(event)
                best = max(scores, key=lambda score: score.reward or 0.0, default=None)
                return (ChooseTrace(best.trace, "best"),) if best and len(scores) == 2 else ()

        return Sampler()


def test_the_race_waits_for_rewards() -> None:
    """It is not over while a score is pending, even if all traces have answered."""

    async def score_slowly(reasoning: str) -> float:
        await asyncio.sleep(0.01)
        return {"1": 0.1, "2": 0.9}[reasoning]

    sink, _ = run_race(BestScore(), {"content": "1"}, {"content": "2"}, reward=score_slowly)
    assert sink.summary is not None
    assert (sink.summary["chosen"], sink.summary["reason"]) == (1, "best")
    assert [trace["reward"] for trace in sink.summary["traces"]] == [0.1, 0.9]


@pytest.mark.parametrize("configured", [True, False])
def test_a_failed_score_is_no_reward(configured: bool) -> None:
    """After a bug in scoring, or for a policy that does not declare ``needs.rewards``, the policy
    is informed that there is no reward, and goes on."""

    async def fail(reasoning: str) -> float:
        raise RuntimeError

    sink, metrics = run_race(
        BestScore(), {"content": "1"}, {"content": "2"}, reward=fail if configured else None
    )
    assert sink.summary is not None
    assert sink.summary["reason"] == "best"
    errors = metrics.registry.get_sample_value(
        "adjourn_fail_open_total", {"policy": "majority", "reason": "internal-error"}
    )
    assert errors == 2


def test_the_client_gets_the_error_if_all_traces_fail() -> None:
    """It is raised, as nothing was sent."""
    with pytest.raises(UpstreamDown):
        run_race(NeverChooses(), UpstreamDown("gone"), UpstreamDown("gone"))
