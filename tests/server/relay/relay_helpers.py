"""A relay between a scripted engine and a sink that records, and streams to script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import httpx
from hypothesis import strategies as st

from adjourn.policies.never import Never
from adjourn.policies.policy import Policy
from adjourn.policies.session.session import Session
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


class RecordingSink:
    """Records what a client would get."""

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


class ByteReads(httpx.AsyncByteStream):
    """A response body in the given reads. An exception among them is raised there; an event is
    waited for."""

    def __init__(self, reads: Sequence[bytes | Exception | asyncio.Event]) -> None:
        self._reads = reads
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for data in self._reads:
            await asyncio.sleep(0)
            if isinstance(data, Exception):
                raise data
            if isinstance(data, asyncio.Event):
                await data.wait()
            else:
                yield data

    async def aclose(self) -> None:
        self.closed = True


class ScriptedEngine(httpx.AsyncBaseTransport):
    """An engine whose responses are given: the main stream, then continuations, and probes.

    ``continuations``: the reads of each stream that continues given ids; the first chunk, which
    echoes the ids, comes before them. A status instead of reads refuses it. ``probes``: the JSON
    of each probe's reply, or a status.
    """

    def __init__(
        self,
        main: Sequence[bytes | Exception | asyncio.Event],
        *continuations: Sequence[bytes | Exception | asyncio.Event] | int,
        probes: Sequence[dict[str, Any] | int] = (),
    ) -> None:
        self.main = ByteReads(main)
        self._continuations = iter(continuations)
        self._probes = iter(probes)
        self.resumed: list[int] | None = None
        self.continuation_id = "chatcmpl-1"
        self.probe_requests: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        if request.url.path == "/v1/completions":
            self.probe_requests.append(body)
            return self._reply(next(self._probes, 500))
        params = body.get("kv_transfer_params")
        if params is None:
            return httpx.Response(200, stream=self.main)
        self.resumed = params["prompt_token_ids"]
        reads = next(self._continuations, 500)
        if isinstance(reads, int):
            return self._reply(reads)
        head = make_chunk({"role": "assistant", "content": ""}, None, prompt=self.resumed)
        head = head.replace(b"chatcmpl-1", self.continuation_id.encode())
        return httpx.Response(200, stream=ByteReads([head, *reads]))

    @staticmethod
    def _reply(reply: dict[str, Any] | int) -> httpx.Response:
        status, content = (reply, {}) if isinstance(reply, int) else (200, reply)
        return httpx.Response(status, json=content)


def make_chunk(
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


def make_relay(
    engine: ScriptedEngine,
    sink: RecordingSink,
    policy: Policy | None = None,
    settings: Settings | None = None,
    **fields: Any,
) -> Relay:
    """The relay of one streamed chat request with these fields."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, **fields}
    settings = settings or Settings(rescue_tokens=0)
    request = parse_chat(json.dumps(body).encode(), {}, settings, None, {"m": None})
    session = Session(policy or Never(), DIALECT, AlwaysProbe())
    adapter, metrics = VLLM(EngineClient(settings, engine)), Metrics()
    labels = ("m", session.policy.name)
    endpoint = ChatEndpoint(request)
    return Relay(adapter, endpoint, [], "r", session, sink, metrics, labels, False, 0.0)


def run_relay(
    main: Sequence[bytes | Exception | asyncio.Event],
    *continuations: Sequence[bytes | Exception | asyncio.Event] | int,
    policy: Policy | None = None,
    probes: Sequence[dict[str, Any] | int] = (),
    **fields: Any,
) -> tuple[RecordingSink, ScriptedEngine, Session]:
    """Relay one request to its end."""
    engine, sink = ScriptedEngine(main, *continuations, probes=probes), RecordingSink()

    async def run() -> Session:
        relay = make_relay(engine, sink, policy, **fields)
        await relay.run()
        return relay.session

    return sink, engine, asyncio.run(run())


GROUPS = st.lists(st.lists(st.sampled_from(WORDS), max_size=3), min_size=1, max_size=12)
COMMENTS = st.lists(st.sampled_from([b"", b"", b": keep-alive\n\n", b":\n\n"]), min_size=40)


def reasoning_events(groups: list[list[str]]) -> list[bytes]:
    """Reasoning in chunks of several tokens, some without text. Ids start at 100."""
    events, number = [], 100
    for words in groups:
        ids = list(range(number, number + max(len(words), 1)))
        number += len(ids)
        text = "".join(words)
        events.append(make_chunk({"reasoning": text} if text else {}, ids))
    return events


def response_events(groups: list[list[str]], both: bool, usage: bool) -> list[bytes]:
    """The events of a whole response: the trace in ``groups``, then the answer "7 é"."""
    more: dict[str, Any] = {}
    if usage:
        more["usage"] = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    role = make_chunk({"role": "assistant", "content": ""}, None, prompt=list(PROMPT))
    end = {"reasoning": "z", "content": "7"} if both else {"content": "7"}
    ids = [90, END, 91] if both else [END, 91]
    events = [role, *reasoning_events(groups), make_chunk(end, ids, **more)]
    return [*events, make_chunk({"content": " é"}, [92, 2], "stop", **more), DONE]


def split_bytes(data: bytes, places: list[int]) -> list[bytes]:
    """The bytes in reads that end anywhere, within characters and line ends too."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


PLACES = st.lists(st.integers(0, 10**6), max_size=30)
