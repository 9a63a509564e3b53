"""Whatever the engine's bytes look like on their way, the client gets what the API promises.

A relay, its session and surface, between a transport that cuts a stream anywhere and a sink.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.never import Never
from adjourn.policies.policy import Policy
from adjourn.policies.session.session import Session
from adjourn.policies.stopping.budget import Budget
from adjourn.server.api.chat import ChatEndpoint
from adjourn.server.api.request import parse_chat
from adjourn.server.config import Settings
from adjourn.server.engines.vllm import VLLM
from adjourn.server.errors import GatewayError
from adjourn.server.metrics import Metrics
from adjourn.server.relay.relay import Relay
from adjourn.server.stream.sse import event_data
from adjourn.server.upstream.client import EngineClient
from tests.policies.session_helpers import DIALECT, END, PROMPT, AlwaysProbe

WORDS = ("a", " b.", "é", "\n", " 日本", ' "q"', "🎉")
DONE = b"data: [DONE]\n\n"


class Sink:
    """Keeps what a client would get."""

    def __init__(self) -> None:
        self.has_started = False
        self.events: list[bytes] = []
        self.summary: dict[str, Any] | None = None
        self.error: GatewayError | None = None

    def open(self, response: httpx.Response) -> None: ...

    async def forward_response(self, response: httpx.Response) -> None: ...

    async def write(self, events: list[bytes]) -> None:
        self.has_started = True
        self.events += events

    async def end(self, summary: dict[str, Any] | None) -> None:
        self.summary = summary

    async def fail(self, error: GatewayError) -> None:
        self.error = error

    @property
    def raw(self) -> bytes:
        return b"".join(self.events)

    def chunks(self) -> list[Any]:
        datas = [data for event in self.events if (data := event_data(event)) is not None]
        return [json.loads(data) for data in datas if data != b"[DONE]"]

    def joined(self, key: str) -> str:
        choices = [choice for chunk in self.chunks() for choice in chunk.get("choices", ())]
        return "".join(choice["delta"].get(key) or "" for choice in choices)


class Reads(httpx.AsyncByteStream):
    def __init__(self, reads: list[bytes]) -> None:
        self._reads = reads

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for data in self._reads:
            await asyncio.sleep(0)
            yield data


class Wire(httpx.AsyncBaseTransport):
    """The engine: a main stream, and behind a cut an answer, each in the reads given."""

    def __init__(self, main: list[bytes], answer: list[bytes]) -> None:
        self._main = main
        self._answer = answer
        self.resumed: list[int] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        params = body.get("kv_transfer_params")
        if params is None:
            return httpx.Response(200, stream=Reads(self._main))
        self.resumed = params["prompt_token_ids"]
        head = chunk({"role": "assistant", "content": ""}, None, prompt=self.resumed)
        return httpx.Response(200, stream=Reads([head, *self._answer]))


def chunk(
    delta: dict[str, Any],
    ids: list[int] | None,
    finish: str | None = None,
    prompt: list[int] | None = None,
    **more: Any,
) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = ids
    whole: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7}
    whole |= {"model": "m", "choices": [choice]} | more
    if prompt is not None:
        whole["prompt_token_ids"] = prompt
    written = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + written.encode() + b"\n\n"


def run(
    main: list[bytes],
    answer: list[bytes] | None = None,
    policy: Policy | None = None,
    **fields: Any,
) -> tuple[Sink, Wire, Session]:
    """The relay of one request, to its end."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, **fields}
    settings, metrics, sink = Settings(rescue_tokens=0), Metrics(), Sink()
    request = parse_chat(json.dumps(asked).encode(), {}, settings, None, {"m": None})
    session = Session(policy or Never(), DIALECT, AlwaysProbe())
    wire = Wire(main, answer or [])

    async def live() -> None:
        adapter = VLLM(EngineClient(settings, wire))
        labels = ("m", session.policy.name)
        relay = Relay(
            adapter, ChatEndpoint(request), [], "r", session, sink, metrics, labels, False, 0.0
        )  # fmt: skip
        await relay.run()

    asyncio.run(live())
    return sink, wire, session


def test_who_has_the_last_event_has_all() -> None:
    """A client that leaves then has not left early, though the engine's stream goes on."""
    told: list[bool] = []

    class Looking(Sink):
        relay: Relay

        async def write(self, events: list[bytes]) -> None:
            await super().write(events)
            asyncio.get_running_loop().call_soon(lambda: told.append(self.relay.is_complete))

    async def live() -> None:
        settings, sink, metrics = Settings(rescue_tokens=0), Looking(), Metrics()
        asked = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": true}'
        request = parse_chat(asked, {}, settings, None, {"m": None})
        late = [chunk({"content": "7"}, [9], "stop", prompt=list(PROMPT)), DONE, b"", b": bye\n\n"]
        session = Session(Never(), DIALECT, AlwaysProbe())
        sink.relay = Relay(
            VLLM(EngineClient(settings, Wire(late, []))),
            ChatEndpoint(request), [], "r", session, sink, metrics, ("m", "never"), False, 0.0,
        )  # fmt: skip
        await sink.relay.run()

    asyncio.run(live())
    assert told[:2] == [False, True]


# -- what an engine may send -------------------------------------------------------------------

GROUPS = st.lists(st.lists(st.sampled_from(WORDS), max_size=3), min_size=1, max_size=12)
COMMENTS = st.lists(st.sampled_from([b"", b"", b": keep-alive\n\n", b":\n\n"]), min_size=40)


def thinking(groups: list[list[str]]) -> list[bytes]:
    """Reasoning in chunks of several tokens, some without text."""
    events, number = [], 100
    for words in groups:
        ids = list(range(number, number + max(len(words), 1)))
        number += len(ids)
        text = "".join(words)
        events.append(chunk({"reasoning": text} if text else {}, ids))
    return events


def told(groups: list[list[str]], both: bool, usage: bool) -> list[bytes]:
    """A whole response."""
    more: dict[str, Any] = {}
    if usage:
        more["usage"] = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    role = chunk({"role": "assistant", "content": ""}, None, prompt=list(PROMPT))
    end = {"reasoning": "z", "content": "7"} if both else {"content": "7"}
    ids = [90, END, 91] if both else [END, 91]
    events = [role, *thinking(groups), chunk(end, ids, **more)]
    return [*events, chunk({"content": " é"}, [92, 2], "stop", **more), DONE]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The bytes in reads that end anywhere, within characters and line ends too."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


PLACES = st.lists(st.integers(0, 10**6), max_size=30)


@given(GROUPS, st.booleans(), st.booleans(), st.booleans(), COMMENTS, PLACES)
def test_every_way_to_read_a_stream_is_the_same_stream(
    groups: list[list[str]],
    both: bool,
    usage: bool,
    crlf: bool,
    comments: list[bytes],
    places: list[int],
) -> None:
    """Nothing is lost, doubled or out of order, comments and line ends included."""
    events = told(groups, both, usage)
    pairs = zip(comments, events, strict=False)
    events = [event for pair in pairs for event in pair] + events[len(comments) :]
    if crlf:
        events = [event.replace(b"\n", b"\r\n") for event in events]
    whole, _, _ = run(events, return_token_ids=True)
    assert whole.raw == b"".join(events)
    cut_up, _, session = run(cut(b"".join(events), places), return_token_ids=True)
    assert cut_up.raw == whole.raw
    assert session.ledger.prompt == len(PROMPT)


@given(GROUPS, st.booleans(), PLACES)
def test_ids_are_hidden_however_they_are_read(
    groups: list[list[str]], both: bool, places: list[int]
) -> None:
    """A client that asked for no ids sees none, and every text."""
    events = told(groups, both, False)
    whole, _, _ = run(events)
    cut_up, _, _ = run(cut(b"".join(events), places))
    assert cut_up.raw == whole.raw
    assert b'ids":[' not in cut_up.raw
    words = "".join(word for group in groups for word in group)
    assert cut_up.joined("reasoning") == words + ("z" if both else "")
    assert cut_up.joined("content") == "7 é"


@given(GROUPS, st.integers(1, 20), st.booleans(), PLACES, PLACES)
def test_a_cut_keeps_what_the_client_saw(
    groups: list[list[str]], limit: int, crlf: bool, mains: list[int], answers: list[int]
) -> None:
    """The answer is drawn from exactly the tokens whose text was sent, and all of it arrives."""
    events = told(groups, False, False)
    answer = [chunk({"content": "4"}, [50]), chunk({"content": "2 é"}, [51], "stop"), DONE]
    if crlf:
        events, answer = ([e.replace(b"\n", b"\r\n") for e in es] for es in (events, answer))
    sink, wire, session = run(
        cut(b"".join(events), mains), cut(b"".join(answer), answers), Budget(max=limit, grace=0)
    )
    if not session.stopped:
        assert wire.resumed is None or session.mute_reason
        assert sink.joined("content") == "7 é"
        return
    assert wire.resumed is not None
    kept = len(wire.resumed) - len(PROMPT) - len(session.closing)
    seen, ids = "", 0
    for group in groups:
        if ids >= kept:
            break
        seen, ids = seen + "".join(group), ids + max(len(group), 1)
    assert ids == kept
    assert sink.joined("reasoning") == seen
    assert sink.joined("content") == "42 é"
    assert sink.chunks()[-1]["adjourn"]["stopped"] is True


@given(GROUPS, PLACES, st.booleans())
def test_a_stream_without_done(groups: list[list[str]], places: list[int], newline: bool) -> None:
    """A finished response is ended as the API promises, even without its last line end."""
    whole = b"".join(told(groups, False, False)[:-1])
    sink, _, _ = run(cut(whole if newline else whole.rstrip(), places))
    assert sink.error is None
    assert event_data(sink.events[-1]) == b"[DONE]"
    assert sink.joined("content") == "7 é"


@given(GROUPS, PLACES, st.integers(1, 10))
def test_a_stream_that_ends_before_its_finish(
    groups: list[list[str]], places: list[int], kept: int
) -> None:
    """What came is sent, then an error, and nothing that looks like an end."""
    events = told(groups, False, False)[:-2][: kept + 1]
    sink, _, _ = run(cut(b"".join(events), places))
    assert sink.error is not None
    assert sink.error.reason == "truncated"
    assert DONE not in sink.raw
    assert [e.get("choices") is not None for e in sink.chunks()] == [True] * len(sink.chunks())


@given(GROUPS, PLACES, st.booleans())
def test_an_error_event(groups: list[list[str]], places: list[int], done: bool) -> None:
    """It reaches the client as the engine wrote it, behind all that came before."""
    error = 'data: {"error": {"message": "é", "type": "InternalServerError"}}\n\n'.encode()
    events = [*told(groups, False, False)[:-2], error, *([DONE] if done else [])]
    sink, _, _ = run(cut(b"".join(events), places))
    assert sink.error is None
    assert error in sink.raw
    assert sink.raw.endswith(DONE)
    words = "".join(word for group in groups for word in group)
    assert sink.joined("reasoning") == words


@pytest.mark.parametrize("junk", [b"data: {\n\n", b"data: 5\n\n", b'data: {"choices":5}\n\n'])
def test_what_is_no_chunk_is_handed_on(junk: bytes) -> None:
    """Counted, and no reason to end a stream."""
    events = told([["a"], ["b"]], False, False)
    sink, _, session = run([*events[:2], junk, *events[2:]])
    assert junk in sink.raw
    assert session.mute_reason == "unreadable-chunk"
    assert sink.raw.endswith(DONE)
