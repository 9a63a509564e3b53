"""Translated responses through a relay: split reads, cuts, broken streams, errors and refusals."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.stopping.budget import Budget
from tests.gateway_client import CHAT
from tests.server.api.translated.translation_helpers import APIS, Client, respond, usage_event
from tests.server.relay.relay_helpers import (
    DONE,
    GROUPS,
    PLACES,
    make_chunk,
    response_events,
    split_bytes,
)

RANDOM_IDS = re.compile(r'"(rs_|msg_|fc_)?[0-9a-f]{16,32}"')


def normalize(client: Client) -> Any:
    """The events without random ids and with consecutive deltas joined."""
    joined: list[Any] = []
    for event in client.events:
        event = json.loads(msgspec.json.encode(event))
        event.pop("sequence_number", None)
        last = joined[-1] if joined else {}
        delta = event.get("delta")
        if delta is not None and last.get("delta") is not None and last["type"] == event["type"]:
            if isinstance(delta, str):
                last["delta"] += delta
                continue
            if delta.get("type") == last["delta"].get("type"):
                key = next(key for key in delta if key != "type")
                last["delta"][key] += delta[key]
                continue
        joined.append(event)
    return json.loads(RANDOM_IDS.sub('"X"', json.dumps(joined)))


@pytest.mark.parametrize("api", APIS)
@given(groups=GROUPS, both=st.booleans(), places=PLACES)
def test_events_do_not_depend_on_reads(
    api: str, groups: Any, both: bool, places: list[int]
) -> None:
    """Reads may split characters and events anywhere."""
    stream = response_events(groups, both, True)
    stream[-1:] = [usage_event(), DONE]
    at_once = respond(api, stream)
    split = respond(api, split_bytes(b"".join(stream), places))
    assert normalize(split) == normalize(at_once)
    assert split.complete


@pytest.mark.parametrize("api", APIS)
@given(groups=GROUPS, limit=st.integers(1, 20), mains=PLACES, answers=PLACES)
def test_a_cut_response_is_one_response(
    api: str, groups: Any, limit: int, mains: list[int], answers: list[int]
) -> None:
    """It has one start, one end with the summary, and the answer of the second request."""
    tail = [usage_event("chatcmpl-2"), DONE]
    answer = [
        make_chunk({"content": "4"}, [50]),
        make_chunk({"content": "2 é"}, [51], "stop"),
        *tail,
    ]
    main = response_events(groups, False, False)
    main[-1:] = tail
    policy = Budget(max=limit, grace=0)
    client = respond(
        api, split_bytes(b"".join(main), mains), split_bytes(b"".join(answer), answers), policy
    )
    events = client.events
    last = events[-2] if api == "messages" else events[-1]["response"]
    text = json.dumps(events, ensure_ascii=False)
    if "adjourn" not in last or not last["adjourn"]["stopped"]:
        assert "7" in text
        return
    names = [event["type"] for event in events]
    assert names.count(names[0]) == names.count(names[-1]) == 1
    assert last["adjourn"]["tokens"]["answer"] == 2
    output_tokens = last["usage"]["output_tokens"]
    assert output_tokens == sum(
        last["adjourn"]["tokens"][kind] for kind in ("reasoning", "marker", "closing", "answer")
    )


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("kept", [1, 3])
def test_a_broken_stream_ends_with_the_apis_error(api: str, kept: int) -> None:
    """It has no end that a client could take for a complete response."""
    client = respond(api, response_events([["a"], ["b"], ["c"]], False, False)[:kept])
    last = client.events[-1]
    assert last["type"] == "error"
    message = last["error"]["message"] if api == "messages" else last["message"]
    assert "broke off" in message
    assert not client.complete
    assert respond(api, response_events([["a"]], False, False)[:2], streamed=False).status == 502


@pytest.mark.parametrize("api", APIS)
def test_an_error_in_the_stream_is_translated(api: str) -> None:
    """The engine's message in the API's format, streamed and not."""
    error = b'data: {"error":{"message":"no room","type":"Overloaded","code":503}}\n\n'
    stream = [*response_events([["a"]], False, False)[:2], error, DONE]
    errors = [event for event in respond(api, stream).events if event["type"] == "error"]
    assert len(errors) == 1
    assert "no room" in json.dumps(errors)
    reply = respond(api, stream, streamed=False)
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["message"] == "no room"
    assert (json.loads(reply.body).get("type") == "error") == (api == "messages")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [True, False])
def test_comments_are_kept_in_streams(api: str, streamed: bool) -> None:
    """They keep the connection alive; a document has none."""
    stream = response_events([["a"]], False, False)
    stream.insert(1, b": keep-alive\n\n")
    client = respond(api, stream, streamed=streamed)
    assert (b": keep-alive\n\n" in client.body) == streamed


@pytest.mark.parametrize("api", APIS)
def test_a_stream_without_usage_is_complete(api: str) -> None:
    """It has the API's last event."""
    events = respond(api, response_events([["a"]], False, False)).events
    assert events[-1]["type"] == ("message_stop" if api == "messages" else "response.completed")


class RefusingEngine(httpx.AsyncBaseTransport):
    """An engine that refuses chat requests, and answers others with ``status``."""

    def __init__(self, status: int) -> None:
        self._status = status
        self.requests: list[tuple[str, bytes]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.url.path, await request.aread()))
        is_chat = request.url.path == CHAT
        return httpx.Response(400 if is_chat else self._status, content=b"its own words")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("status", [400, 429, 200])
def test_a_refused_chat_request_goes_to_the_apis_own_endpoint(
    api: str, streamed: bool, status: int
) -> None:
    """With the client's own body. If that endpoint accepts it, the headers state that the response
    ran without a policy."""
    engine = RefusingEngine(status)
    client = respond(api, [], streamed=streamed, engine=engine)
    assert (client.status, client.body) == (status, b"its own words")
    assert [path for path, _ in engine.requests] == [CHAT, "/own"]
    assert json.loads(engine.requests[1][1]) == {"model": "m", "stream": streamed, **APIS[api][0]}
    assert (b"x-adjourn-policy" in client.headers) == (status >= 400)
    assert (b"x-adjourn-passed-through" in client.headers) == (status < 400)
