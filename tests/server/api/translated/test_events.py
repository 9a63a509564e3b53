"""A chat's stream told in the events of another API: well-formed, whole, and what the document
says, however the engine cut it up."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from adjourn.policies.never import Never
from adjourn.policies.policy import Policy
from adjourn.policies.session.session import Session
from adjourn.policies.stopping.budget import Budget
from adjourn.server.api.chat import ChatEndpoint
from adjourn.server.api.request import ParsedRequest, parse_translated
from adjourn.server.api.translated.engine_defaults import EngineDefaults
from adjourn.server.api.translated.messages import MessagesTranslation
from adjourn.server.api.translated.responses import ResponsesTranslation
from adjourn.server.api.translated.sinks import (
    OriginalRequest,
    TranslatedDocument,
    TranslatedStream,
)
from adjourn.server.api.translated.translation import Translation
from adjourn.server.config import Settings
from adjourn.server.engines.vllm import VLLM
from adjourn.server.errors import GatewayError
from adjourn.server.metrics import Metrics
from adjourn.server.relay.relay import Relay
from adjourn.server.upstream.client import EngineClient
from tests.gateway.test_streams import DONE, GROUPS, PLACES, Wire, chunk, cut, told
from tests.gateway_client import CHAT, events
from tests.policies.session_helpers import DIALECT, AlwaysProbe

MESSAGES_REQUEST = {"max_tokens": 500, "messages": [{"role": "user", "content": "x"}]}
RESPONSES_REQUEST = {"input": "x"}
EXAMPLE_RESPONSE = {
    "temperature": 1.0,
    "top_p": 1.0,
    "tools": [{"name": "f", "type": "function", "strict": None}],
    "reasoning": {"effort": "low", "summary": None},
    "text": {"format": {"type": "json_schema", "strict": None}, "verbosity": None},
    "error": None,
}
ENGINE_DEFAULTS = EngineDefaults(False, EXAMPLE_RESPONSE, False, 100, None)
NAMES = re.compile(r'"(rs_|msg_|fc_)?[0-9a-f]{16,32}"')
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4, "created_cache_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
APIS: dict[str, tuple[dict[str, Any], Callable[[Any], Translation]]] = {
    "messages": (MESSAGES_REQUEST, lambda fields: MessagesTranslation(fields, ENGINE_DEFAULTS)),
    "responses": (RESPONSES_REQUEST, lambda fields: ResponsesTranslation(fields, ENGINE_DEFAULTS)),
}


def asked(api: str, **fields: Any) -> ParsedRequest:
    body, translate = APIS[api]
    content = json.dumps({"model": "m", **body, **fields}).encode()
    settings = Settings(rescue_tokens=0)
    return parse_translated(content, {}, settings, None, {"m": None}, translate)


class Client:
    """What it gets, as the server would write it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message["body"]
            self.whole = not message.get("more_body", False)

    @property
    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = events(self.body)
        return found


def respond(
    api: str,
    main: list[bytes],
    answer: list[bytes] | None = None,
    policy: Policy | None = None,
    streamed: bool = True,
    wire: httpx.AsyncBaseTransport | None = None,
    **fields: Any,
) -> Client:
    """One response, from the engine's bytes to the client's."""
    request, client = asked(api, stream=streamed, **fields), Client()
    assert request.translation is not None
    wire = wire or Wire(main, answer or [])
    session = Session(policy or Never(), DIALECT, AlwaysProbe())

    async def live() -> None:
        adapter, metrics = VLLM(EngineClient(Settings(), wire)), Metrics()
        assert request.passthrough_body is not None
        extra = [(b"x-adjourn-policy", b"never")]
        retold = (
            request.translation,
            OriginalRequest(adapter.engine, "/own", [], request.passthrough_body),
        )
        sink = (
            TranslatedStream(client.send, extra, *retold)
            if streamed
            else TranslatedDocument(client.send, extra, {}, None, *retold)
        )
        chat = ChatEndpoint(request)
        relay = Relay(adapter, chat, [], "r", session, sink, metrics, ("m", "p"), False, 0.0)
        try:
            await relay.run()
        except GatewayError as error:
            client.status = error.status

    asyncio.run(live())
    return client


# -- any reply ---------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)
CALLS = st.lists(st.tuples(TEXT, st.dictionaries(TEXT, TEXT, max_size=2)), max_size=3)


@st.composite
def replies(draw: st.DrawFn) -> tuple[list[dict[str, Any]], str, str, list[tuple[str, str]]]:
    """Deltas as an engine may send them, and what they say: thought, content, calls."""
    thought = draw(st.lists(TEXT, max_size=4))
    content = draw(st.lists(TEXT, max_size=4))
    calls = [(name, json.dumps(given)) for name, given in draw(CALLS)]
    deltas: list[dict[str, Any]] = [{"reasoning": text} for text in thought]
    said: list[dict[str, Any]] = [{"content": text} for text in content]
    if deltas and said and draw(st.booleans()):
        said[0] |= deltas.pop()  # both in one chunk
    deltas += said
    for index, (name, arguments) in enumerate(calls):
        at = draw(st.integers(0, len(arguments)))
        first = {"index": index, "id": f"call_{index}", "type": "function"}
        first["function"] = {"name": name, "arguments": arguments[:at]}
        deltas.append({"tool_calls": [first]})
        rest = {"index": index, "function": {"arguments": arguments[at:]}}
        deltas.append({"tool_calls": [rest]})
    deltas = [delta for each in deltas for delta in (each, {})[: draw(st.integers(1, 2))]]
    return deltas, "".join(thought), "".join(content), calls


def stream_of(deltas: list[dict[str, Any]], finish: str) -> list[bytes]:
    head = chunk({"role": "assistant", "content": ""}, None, prompt=[1] * 9)
    last = chunk({}, [2], finish, stop_reason=None)
    usage = {"id": "chatcmpl-1", "choices": [], "usage": USAGE}
    written = [chunk(delta, [3]) for delta in deltas]
    return [head, *written, last, b"data: " + json.dumps(usage).encode() + b"\n\n", DONE]


def tell(api: str, chunks: list[bytes]) -> list[dict[str, Any]]:
    translation = asked(api, stream=True).translation
    assert translation is not None
    return events(b"".join(one for event in chunks for one in translation.translate_event(event)))


def whole(api: str, reply: tuple[Any, str, str, list[tuple[str, str]]], finish: str) -> Any:
    """The document of the same reply."""
    _, thought, content, calls = reply
    translation = asked(api).translation
    assert translation is not None
    told = [
        {"id": f"call_{i}", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]
    message = {"reasoning": thought, "content": content, "tool_calls": told}
    choice = {"message": message, "finish_reason": finish, "stop_reason": None}
    chat = {"id": "chatcmpl-1", "created": 7, "model": "m", "choices": [choice], "usage": USAGE}
    return translation.build_document(chat)


@given(replies(), st.sampled_from(["stop", "length", "tool_calls"]))
def test_a_messages_stream_says_what_its_document_says(reply: Any, finish: str) -> None:
    """Put together as a client does it: blocks in order, each opened, filled and closed once."""
    start, *told = tell("messages", stream_of(reply[0], finish))
    message = start["message"]
    assert (start["type"], message["usage"]["input_tokens"]) == ("message_start", 9)
    assert told.pop() == {"type": "message_stop"}
    end = told.pop()
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in told:
        kind = event["type"].removeprefix("content_block_")
        assert is_open == (kind != "start")
        assert event["index"] == len(blocks) - is_open
        if kind == "start":
            blocks.append(event["content_block"] | {"json": ""})
        for key, text in event.get("delta", {}).items():
            if key != "type":
                name = "json" if key == "partial_json" else key
                blocks[-1][name] = blocks[-1].get(name, "") + text
        is_open = kind != "stop"
    assert not is_open
    for block in blocks:
        if arguments := block.pop("json"):
            block["input"] = json.loads(arguments)
        block.pop("signature", None)
    document = whole("messages", reply, finish)
    for block in document["content"]:
        block.pop("signature", None)
    said = blocks or [{"type": "text", "text": ""}]
    assert said == document["content"]
    assert end["usage"] == document["usage"]
    assert end["delta"]["stop_reason"] == document["stop_reason"]
    usage = {"input_tokens": 3, "output_tokens": 5}
    usage |= {"cache_creation_input_tokens": 2, "cache_read_input_tokens": 4}
    assert end["usage"] == usage


@given(replies(), st.sampled_from(["stop", "length", "tool_calls"]))
def test_a_responses_stream_says_what_its_document_says(reply: Any, finish: str) -> None:
    """Each item is opened, filled and done under one id and place; numbers have no gap."""
    told = tell("responses", stream_of(reply[0], finish))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    created, in_progress, *told, completed = told
    assert created["response"] == in_progress["response"]
    assert [e["type"] for e in (created, in_progress, completed)] == [
        *("response.created", "response.in_progress", "response.completed"),
    ]
    items: list[dict[str, Any]] = []
    current: dict[str, Any] = {}
    text = ""
    for event in told:
        kind = event["type"]
        assert event["output_index"] == len(items)
        if kind == "response.output_item.added":
            assert not current
            current, text = event["item"], ""
        elif kind == "response.output_item.done":
            assert event["item"]["id"] == current["id"]
            items.append(event["item"])
            current = {}
        else:
            assert event["item_id"] == current["id"]
            if kind.endswith(".delta"):
                text += event["delta"]
            elif not kind.startswith("response.content_part."):
                assert event.get("text", event.get("arguments")) == text
    assert not current
    response = completed["response"]
    assert response["output"] == items
    assert same(response) == same(whole("responses", reply, finish))


def same(response: Any) -> Any:
    """Without ids, and the status of reasoning, which a document does not tell."""
    output = [
        {
            k: v
            for k, v in item.items()
            if k != "id" and (k, item["type"]) != ("status", "reasoning")
        }
        for item in response["output"]
    ]
    return {**response, "output": output}


# -- any way to read it ------------------------------------------------------------------------


def plain(client: Client) -> Any:
    """Without what is drawn at random, deltas put together."""
    told: list[Any] = []
    for event in client.events:
        event = json.loads(msgspec.json.encode(event))
        event.pop("sequence_number", None)
        last = told[-1] if told else {}
        delta = event.get("delta")
        if delta is not None and last.get("delta") is not None and last["type"] == event["type"]:
            if isinstance(delta, str):
                last["delta"] += delta
                continue
            if delta.get("type") == last["delta"].get("type"):
                key = next(key for key in delta if key != "type")
                last["delta"][key] += delta[key]
                continue
        told.append(event)
    return json.loads(NAMES.sub('"X"', json.dumps(told)))


@pytest.mark.parametrize("api", APIS)
@given(groups=GROUPS, both=st.booleans(), places=PLACES)
def test_reads_do_not_matter(api: str, groups: Any, both: bool, places: list[int]) -> None:
    """Cut up within characters and events, the same is told."""
    stream = told(groups, both, True)
    usage = {"id": "chatcmpl-1", "choices": [], "usage": USAGE}
    stream[-1:] = [b"data: " + json.dumps(usage).encode() + b"\n\n", DONE]
    at_once = respond(api, stream)
    cut_up = respond(api, cut(b"".join(stream), places))
    assert plain(cut_up) == plain(at_once)
    assert cut_up.whole


@pytest.mark.parametrize("api", APIS)
@given(groups=GROUPS, limit=st.integers(1, 20), mains=PLACES, answers=PLACES)
def test_a_cut_is_told_once(
    api: str, groups: Any, limit: int, mains: list[int], answers: list[int]
) -> None:
    """One beginning, one end, the note on it, and the answer of the second call."""
    usage = {"id": "chatcmpl-2", "choices": [], "usage": USAGE}
    tail = [b"data: " + json.dumps(usage).encode() + b"\n\n", DONE]
    answer = [chunk({"content": "4"}, [50]), chunk({"content": "2 é"}, [51], "stop"), *tail]
    main = told(groups, False, False)
    main[-1:] = tail
    policy = Budget(max=limit, grace=0)
    client = respond(api, cut(b"".join(main), mains), cut(b"".join(answer), answers), policy)
    events = client.events
    last = events[-2] if api == "messages" else events[-1]["response"]
    said = json.dumps(events, ensure_ascii=False)
    if "adjourn" not in last or not last["adjourn"]["stopped"]:
        assert "7" in said
        return
    names = [event["type"] for event in events]
    assert names.count(names[0]) == names.count(names[-1]) == 1
    assert last["adjourn"]["tokens"]["answer"] == 2
    given = last["usage"]["output_tokens"]
    assert given == sum(
        last["adjourn"]["tokens"][kind] for kind in ("reasoning", "marker", "closing", "answer")
    )


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("kept", [1, 3])
def test_an_engine_that_breaks_off(api: str, kept: int) -> None:
    """The error of that API, and no end that a client could take for one."""
    client = respond(api, told([["a"], ["b"], ["c"]], False, False)[:kept])
    last = client.events[-1]
    assert last["type"] == "error"
    message = last["error"]["message"] if api == "messages" else last["message"]
    assert "broke off" in message
    assert not client.whole
    assert respond(api, told([["a"]], False, False)[:2], streamed=False).status == 502


@pytest.mark.parametrize("api", APIS)
def test_an_error_in_mid_stream(api: str) -> None:
    """The engine's own words in that API's shape, streamed and not."""
    error = b'data: {"error":{"message":"no room","type":"Overloaded","code":503}}\n\n'
    stream = [*told([["a"]], False, False)[:2], error, DONE]
    said = [event for event in respond(api, stream).events if event["type"] == "error"]
    assert len(said) == 1
    assert "no room" in json.dumps(said)
    reply = respond(api, stream, streamed=False)
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["message"] == "no room"
    assert (json.loads(reply.body).get("type") == "error") == (api == "messages")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [True, False])
def test_what_is_no_text_event(api: str, streamed: bool) -> None:
    """Comments keep a stream alive as they are; a document has none."""
    stream = told([["a"]], False, False)
    stream.insert(1, b": keep-alive\n\n")
    client = respond(api, stream, streamed=streamed)
    assert (b": keep-alive\n\n" in client.body) == streamed


@pytest.mark.parametrize("api", APIS)
def test_an_engine_that_tells_no_usage(api: str) -> None:
    """The response ends all the same."""
    events = respond(api, told([["a"]], False, False)).events
    assert events[-1]["type"] == ("message_stop" if api == "messages" else "response.completed")


def test_the_prompt_is_what_was_counted() -> None:
    """The limit that a response tells is the client's, or what the context has left."""
    assert tell("responses", stream_of([], "stop"))[0]["response"]["max_output_tokens"] == 91
    limited = respond("responses", stream_of([], "stop"), max_output_tokens=7)
    assert limited.events[0]["response"]["max_output_tokens"] == 7


class Refuses(httpx.AsyncBaseTransport):
    """An engine that takes no chat, and answers its own endpoint with ``status``."""

    def __init__(self, status: int) -> None:
        self._status = status
        self.asked: list[tuple[str, bytes]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.path, await request.aread()))
        chat = request.url.path == CHAT
        return httpx.Response(400 if chat else self._status, content=b"its own words")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("status", [400, 429, 200])
def test_what_a_chat_is_refused(api: str, streamed: bool, status: int) -> None:
    """The same is asked of the API's own endpoint, as it came; if that takes it, it is said that
    no policy judged it."""
    wire = Refuses(status)
    client = respond(api, [], streamed=streamed, wire=wire)
    assert (client.status, client.body) == (status, b"its own words")
    assert [path for path, _ in wire.asked] == [CHAT, "/own"]
    assert json.loads(wire.asked[1][1]) == {"model": "m", "stream": streamed, **APIS[api][0]}
    assert (b"x-adjourn-policy" in client.headers) == (status >= 400)
    assert (b"x-adjourn-passed-through" in client.headers) == (status < 400)


@pytest.mark.parametrize("api", APIS)
def test_when_it_is_all_told(api: str) -> None:
    """With the last event, whatever of the engine's stream is still to come."""
    request = asked(api, stream=True)
    assert request.translation is not None
    *most, usage, done = stream_of([{"content": "x"}], "stop")
    for event in most:
        request.translation.translate_event(event)
        assert not request.translation.finished
    for event in (usage, done):
        request.translation.translate_event(event)
    assert request.translation.finished
