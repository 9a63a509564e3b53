"""A relay before a scripted engine: cuts, refusals, faults, late probes, extended traces."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from adjourn.policies.events import Checkpoint, Event, Probe, ProbeResult, Stop
from adjourn.policies.session.session import Session
from adjourn.policies.stopping.budget import Budget
from adjourn.server.config import Settings
from adjourn.server.errors import GatewayError
from tests.policies.session_helpers import CLOSING, END, PROMPT, ScriptedPolicy
from tests.server.relay.relay_helpers import (
    DONE,
    RecordingSink,
    ScriptedEngine,
    make_chunk,
    make_relay,
    run_relay,
)

ROLE = make_chunk({"role": "assistant", "content": ""}, None, prompt=list(PROMPT))
TRACE = [make_chunk({"reasoning": f"{n} is it."}, [100 + n]) for n in range(6)]
OWN_ANSWER = [make_chunk({"content": "own"}, [END, 90]), make_chunk({}, [91], "stop"), DONE]
ANSWER = [make_chunk({"content": "42"}, [50]), make_chunk({}, [51], "stop"), DONE]
CUE = make_chunk({"reasoning": " Wait"}, [110])
AFTER_CUE = make_chunk({"reasoning": ", no"}, [111])
PROBE_REPLY = {
    "choices": [
        {
            "text": "42}",
            "finish_reason": "stop",
            "logprobs": {"tokens": ["42", "}"], "token_logprobs": [-0.01, -0.01]},
        }
    ]
}


def stop_when_confident(event: Event) -> Any:
    """Probe at each cue, and stop at its result."""
    if isinstance(event, Checkpoint):
        return Probe()
    return Stop("confident", event.position) if isinstance(event, ProbeResult) else None


def test_a_whole_response_is_passed_on() -> None:
    """A policy that never stops changes no byte."""
    events = [ROLE, *TRACE, *OWN_ANSWER]
    sink, engine, session = run_relay(events, return_token_ids=True)
    assert sink.raw == b"".join(events)
    assert engine.resumed is None
    assert (session.ledger.reasoning, session.ledger.answer) == (6, 2)
    assert engine.main.closed


def test_a_cut_aborts_the_main_stream_and_sends_the_answer() -> None:
    """The main stream goes on for ever; the answer continues the kept trace under its own id."""
    forever = asyncio.Event()
    answer = [event.replace(b"chatcmpl-1", b"chatcmpl-2") for event in ANSWER]
    engine, sink = ScriptedEngine([ROLE, *TRACE, forever], answer), RecordingSink()
    engine.continuation_id = "chatcmpl-2"

    async def run() -> Session:
        relay = make_relay(engine, sink, Budget(max=3, grace=0))
        await relay.run()
        return relay.session

    session = asyncio.run(run())
    assert session.stopped
    assert engine.resumed == [*PROMPT, 100, 101, 102, *CLOSING]
    assert engine.main.closed
    assert sink.joined("reasoning") == "0 is it.1 is it.2 is it."
    assert sink.joined("content") == "42"
    assert {chunk["id"] for chunk in sink.chunks()} == {"chatcmpl-1"}
    assert sink.chunks()[-1]["adjourn"]["reason"] == "budget"


@pytest.mark.parametrize("status", [400, 500])
def test_a_refused_cut_changes_nothing(status: int) -> None:
    """The main stream is the response after all, and the summary says that the cut was refused."""
    events = [ROLE, *TRACE, *OWN_ANSWER]
    sink, _, session = run_relay(events, status, policy=Budget(max=3, grace=0))
    assert session.trigger is not None
    assert session.trigger.action == "refused"
    assert sink.joined("reasoning") == "".join(f"{n} is it." for n in range(6))
    assert sink.joined("content") == "own"
    assert session.ledger.wasted == 0


@pytest.mark.parametrize(
    ("fault", "reason"), [(httpx.ReadTimeout(""), "timeout"), (httpx.ReadError(""), "broken")]
)
@pytest.mark.parametrize("place", ["trace", "answer"])
def test_an_engine_that_breaks_off(fault: Exception, reason: str, place: str) -> None:
    """What came is sent, then the error; before the first event there is an error status."""
    main: list[Any] = [ROLE, *TRACE, fault] if place == "trace" else [ROLE, *TRACE]
    answer: list[Any] = [ANSWER[0], fault]
    policy = Budget(max=99 if place == "trace" else 3, grace=0)
    sink, _, _ = run_relay(main, answer, policy=policy)
    assert sink.error is not None
    assert sink.error.reason == reason
    assert DONE not in sink.raw
    assert sink.joined("content") == ("" if place == "trace" else "42")
    with pytest.raises(GatewayError):
        run_relay([fault])


def test_a_refused_request_is_forwarded() -> None:
    """The engine's status and body are the client's, and no session starts."""

    class Refusing(ScriptedEngine):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(404, json={"error": {}})

    class ForwardingSink(RecordingSink):
        forwarded: httpx.Response | None = None

        async def forward_response(self, response: httpx.Response) -> None:
            self.forwarded = response

    async def run() -> tuple[int, httpx.Response | None]:
        sink = ForwardingSink()
        relay = make_relay(Refusing([]), sink)
        await relay.run()
        return relay.status, sink.forwarded

    status, forwarded = asyncio.run(run())
    assert status == 404
    assert forwarded is not None


def test_a_probe_holds_back_what_follows_its_checkpoint() -> None:
    """The cut falls before the cue, although the trace went on while the probe ran."""
    events = [ROLE, TRACE[0], CUE, AFTER_CUE, *OWN_ANSWER]
    sink, engine, session = run_relay(
        [*events[:4], asyncio.Event()],
        ANSWER,
        policy=ScriptedPolicy(stop_when_confident),
        probes=[PROBE_REPLY],
    )
    assert session.stopped
    assert engine.probe_requests[0]["prompt"][: len(PROMPT) + 1] == [*PROMPT, 100]
    assert engine.resumed == [*PROMPT, 100, *CLOSING]
    assert sink.joined("reasoning") == "0 is it."
    assert sink.joined("content") == "42"


def test_a_late_probe_changes_nothing() -> None:
    """The trace has ended by itself when the probe's result comes: it is counted and ignored."""
    engine_waits = asyncio.Event()

    class LateEngine(ScriptedEngine):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/v1/completions":
                await engine_waits.wait()
            return await super().handle_async_request(request)

    class ReleasingSink(RecordingSink):
        async def write(self, events: list[bytes]) -> None:
            await super().write(events)
            if self.joined("content") == "own":
                engine_waits.set()

    engine = LateEngine([ROLE, TRACE[0], CUE, AFTER_CUE, *OWN_ANSWER], probes=[PROBE_REPLY])
    sink = ReleasingSink()

    async def run() -> Session:
        relay = make_relay(engine, sink, ScriptedPolicy(stop_when_confident))
        await relay.run()
        return relay.session

    session = asyncio.run(run())
    assert session.trigger is None
    assert engine.resumed is None
    assert sink.joined("reasoning") == "0 is it. Wait, no"
    assert sink.joined("content") == "own"


@pytest.mark.parametrize("refused", [False, True])
def test_a_trace_that_is_extended(refused: bool) -> None:
    """The client gets the inserted text as reasoning, then the new stream; or, if the engine
    refuses, the model's own end."""
    more = [make_chunk({"reasoning": "so"}, [120]), *OWN_ANSWER]
    sink, engine, session = run_relay(
        [ROLE, *TRACE[:2], *OWN_ANSWER],
        500 if refused else more,
        policy=Budget(max=99, min=9, waits=1),
    )
    begin = "0 is it.1 is it."
    assert sink.joined("reasoning") == begin + ("" if refused else "\nWaitso")
    assert sink.joined("content") == "own"
    assert session.extensions == (not refused)
    if not refused:
        assert engine.resumed == [*PROMPT, 100, 101, 22, 23]


def test_an_answer_that_opens_a_trace_is_closed_once() -> None:
    """The start marker and its ids are not the client's; a second answer follows."""
    escape = [make_chunk({"content": "<think>"}, [PROMPT[-1]]), asyncio.Event()]
    settings = Settings(rescue_tokens=0, end_escapes=True)
    engine = ScriptedEngine([ROLE, *TRACE, asyncio.Event()], escape, ANSWER)
    sink = RecordingSink()

    async def run() -> Session:
        relay = make_relay(engine, sink, Budget(max=3, grace=0), settings)
        await relay.run()
        return relay.session

    session = asyncio.run(run())
    assert engine.resumed == [*PROMPT, 100, 101, 102, *CLOSING, PROMPT[-1], *CLOSING]
    assert sink.joined("content") == "42"
    assert session.ledger.wasted >= 1


def test_a_fault_in_carrying_out_an_order_is_not_the_clients() -> None:
    """Fail open: the policy is muted and the main stream goes on."""

    class Broken(ScriptedEngine):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/v1/completions":
                raise RuntimeError("a fault of the gateway")
            return await super().handle_async_request(request)

    engine, sink = Broken([ROLE, TRACE[0], CUE, AFTER_CUE, *OWN_ANSWER]), RecordingSink()

    async def run() -> Session:
        relay = make_relay(engine, sink, ScriptedPolicy(stop_when_confident))
        await relay.run()
        return relay.session

    session = asyncio.run(run())
    assert session.mute_reason == "internal-error"
    assert sink.joined("content") == "own"
    assert sink.error is None
