"""``/v1/messages`` (Anthropic): policies, pass-through, and the gateway's own errors."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from adjourn.server.app import create_app
from adjourn.server.config import Settings
from adjourn.server.errors import TooLarge, UpstreamDown, UpstreamTimeout, error_body, error_event
from tests.gateway_client import events, metric_value

REQUEST = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


class Engine(httpx.AsyncBaseTransport):
    """A transport that records requests, and answers with ``reply`` or, without one, is down."""

    def __init__(self, reply: httpx.Response | None) -> None:
        self._reply = reply
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self._reply is None:
            raise httpx.ConnectError("connection refused")
        return self._reply


def post(engine: Engine, path: str, content: bytes, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        app = httpx.ASGITransport(app=create_app(Settings(max_body_bytes=300), engine))
        async with httpx.AsyncClient(transport=app, base_url="http://gateway") as client:
            return await client.post(path, content=content, headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens?beta=true"])
def test_an_engine_that_is_down(path: str) -> None:
    """502, in Anthropic's error shape."""
    reply = post(Engine(None), path, json.dumps(REQUEST).encode())
    assert reply.status_code == 502
    assert set(reply.json()) == {"type", "error"}
    assert reply.json()["type"] == "error"
    assert reply.json()["error"]["type"] == "api_error"
    assert reply.headers["retry-after"]


def test_a_body_over_the_size_limit() -> None:
    """413, with Anthropic's name for it."""
    reply = post(Engine(None), "/v1/messages", b"x" * 400)
    assert reply.status_code == 413
    assert reply.json()["error"]["type"] == "request_too_large"


def test_request_and_error_are_forwarded_unmodified() -> None:
    """Headers, query and body reach the engine; its error reaches the client."""
    error = b'{"type":"error","error":{"type":"BadRequestError","message":"prompt is too long"}}'
    engine = Engine(httpx.Response(400, content=error, headers={"request-id": "r1"}))
    content = json.dumps(REQUEST).encode()
    sent = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b", "x-api-key": "k"}
    reply = post(engine, "/v1/messages?beta=true", content, **sent)
    assert (reply.status_code, reply.content) == (400, error)
    assert reply.headers["request-id"] == "r1"
    received = engine.requests[-1]
    assert sent.items() <= dict(received.headers).items()
    assert received.url.query == b"beta=true"
    assert received.content == content


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TooLarge("x"), "request_too_large"),
        (UpstreamDown("x"), "api_error"),
        (UpstreamTimeout("x"), "timeout_error"),
    ],
)
def test_each_api_has_its_own_error_shape(
    error: UpstreamDown | UpstreamTimeout | TooLarge, kind: str
) -> None:
    """As a body, and as the last event of a stream."""
    expected = {"type": "error", "error": {"type": kind, "message": "x"}}
    assert json.loads(error_body("/v1/messages", error)) == expected
    name, data = error_event("/v1/messages", error).rstrip().split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == expected
    assert error_body("/v1/chat/completions", error) == error.body
    assert error_event("/v1/responses", error) == b"data: " + error.body + b"\n\n"


def ask(url: str, **fields: object) -> httpx.Response:
    request = {"model": "standin", "max_tokens": 900, "messages": REQUEST["messages"], **fields}
    return httpx.post(f"{url}/v1/messages?beta=true", json=request, timeout=60)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut_message_has_a_summary(adjourn: str, streamed: bool) -> None:
    """As in a chat: the trace ends before the cue, and the summary describes the cut."""
    sure = {"tokens": 80, "cues": [20, 50], "trial_logprob": -0.001}
    reply = ask(adjourn, stream=streamed, standin=sure)
    last = events(reply.content)[-2] if streamed else reply.json()
    assert (last["adjourn"]["stopped"], last["adjourn"]["position"]) == (True, 20)
    assert ("x-adjourn" in reply.headers) != streamed
    assert b"Wait" not in reply.content
    assert (
        metric_value(adjourn, "adjourn_requests_total", endpoint="/v1/messages", policy="deer") > 0
    )


def test_an_engine_that_dies_mid_stream(adjourn: str) -> None:
    """Anthropic's error event, and a closed connection."""
    request = {
        "model": "standin",
        "max_tokens": 900,
        "messages": REQUEST["messages"],
        "stream": True,
    }
    request["standin"] = {"tokens": 60, "die_after": 9}
    received: list[bytes] = []

    def read() -> None:
        with httpx.stream("POST", f"{adjourn}/v1/messages", json=request) as reply:
            received.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    sent = events(b"".join(received))
    assert sent[-1]["type"] == "error"
    assert sent[-1]["error"]["type"] == "api_error"
    assert "message_stop" not in [event["type"] for event in sent]


@pytest.mark.parametrize("streamed", [True, False])
def test_an_engine_error_is_that_of_its_own_endpoint(
    adjourn: str, standin: str, streamed: bool
) -> None:
    """The gateway sends a chat request; on an error it repeats it at the engine's /v1/messages and
    returns that error."""
    fields = {"stream": streamed, "standin": {"status": 429}}
    direct, ours = ask(standin, **fields), ask(adjourn, **fields)
    assert (ours.status_code, ours.content) == (direct.status_code, direct.content)
