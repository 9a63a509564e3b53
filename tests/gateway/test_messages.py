"""Anthropic's Messages: judged, handed through, and what the gateway itself says there."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from adjourn.server.app import create_app
from adjourn.server.config import Settings
from adjourn.server.errors import TooLarge, UpstreamDown, UpstreamTimeout, error_body, error_event
from tests.gateway_client import events, metric_value

ASKED = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


class Engine(httpx.AsyncBaseTransport):
    """Keeps what it was asked, and answers or is not there."""

    def __init__(self, reply: httpx.Response | None) -> None:
        self._reply = reply
        self.asked: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self._reply is None:
            raise httpx.ConnectError("nobody there")
        return self._reply


def post(engine: Engine, path: str, content: bytes, **headers: str) -> httpx.Response:
    async def asked() -> httpx.Response:
        app = httpx.ASGITransport(app=create_app(Settings(max_body_bytes=300), engine))
        async with httpx.AsyncClient(transport=app, base_url="http://gateway") as client:
            return await client.post(path, content=content, headers=headers)

    return asyncio.run(asked())


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens?beta=true"])
def test_an_engine_that_is_down(path: str) -> None:
    """502 as an error of that API."""
    reply = post(Engine(None), path, json.dumps(ASKED).encode())
    assert reply.status_code == 502
    assert set(reply.json()) == {"type", "error"}
    assert reply.json()["type"] == "error"
    assert reply.json()["error"]["type"] == "api_error"
    assert reply.headers["retry-after"]


def test_a_body_over_the_limit() -> None:
    """413, by that API's own name."""
    reply = post(Engine(None), "/v1/messages", b"x" * 400)
    assert reply.status_code == 413
    assert reply.json()["error"]["type"] == "request_too_large"


def test_what_it_brings_and_says_is_kept() -> None:
    """Headers, query and body reach the engine; its own error comes back unmodified."""
    error = b'{"type":"error","error":{"type":"BadRequestError","message":"prompt is too long"}}'
    engine = Engine(httpx.Response(400, content=error, headers={"request-id": "r1"}))
    content = json.dumps(ASKED).encode()
    sent = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b", "x-api-key": "k"}
    reply = post(engine, "/v1/messages?beta=true", content, **sent)
    assert (reply.status_code, reply.content) == (400, error)
    assert reply.headers["request-id"] == "r1"
    asked = engine.asked[-1]
    assert sent.items() <= dict(asked.headers).items()
    assert asked.url.query == b"beta=true"
    assert asked.content == content


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TooLarge("x"), "request_too_large"),
        (UpstreamDown("x"), "api_error"),
        (UpstreamTimeout("x"), "timeout_error"),
    ],
)
def test_shapes(error: UpstreamDown | UpstreamTimeout | TooLarge, kind: str) -> None:
    """Each API's errors, as a body and as the last event of a stream."""
    said = {"type": "error", "error": {"type": kind, "message": "x"}}
    assert json.loads(error_body("/v1/messages", error)) == said
    name, data = error_event("/v1/messages", error).rstrip().split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == said
    assert error_body("/v1/chat/completions", error) == error.body
    assert error_event("/v1/responses", error) == b"data: " + error.body + b"\n\n"


# -- judged, before the stand-in ----------------------------------------------------------------


def ask(url: str, **fields: object) -> httpx.Response:
    asked = {"model": "standin", "max_tokens": 900, "messages": ASKED["messages"], **fields}
    return httpx.post(f"{url}/v1/messages?beta=true", json=asked, timeout=60)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cut(adjourn: str, streamed: bool) -> None:
    """As in a chat: the trace ends before the cue, and the note says so."""
    sure = {"tokens": 80, "cues": [20, 50], "trial_logprob": -0.001}
    reply = ask(adjourn, stream=streamed, standin=sure)
    told = events(reply.content)[-2] if streamed else reply.json()
    assert (told["adjourn"]["stopped"], told["adjourn"]["position"]) == (True, 20)
    assert ("x-adjourn" in reply.headers) != streamed
    assert b"Wait" not in reply.content
    assert (
        metric_value(adjourn, "adjourn_requests_total", endpoint="/v1/messages", policy="deer") > 0
    )


def test_an_engine_that_dies_in_mid_stream(adjourn: str) -> None:
    """That API's error event, and a broken connection."""
    asked = {"model": "standin", "max_tokens": 900, "messages": ASKED["messages"], "stream": True}
    asked["standin"] = {"tokens": 60, "die_after": 9}
    received: list[bytes] = []

    def read() -> None:
        with httpx.stream("POST", f"{adjourn}/v1/messages", json=asked) as reply:
            received.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    told = events(b"".join(received))
    assert told[-1]["type"] == "error"
    assert told[-1]["error"]["type"] == "api_error"
    assert "message_stop" not in [event["type"] for event in told]


@pytest.mark.parametrize("streamed", [True, False])
def test_what_a_chat_is_refused(adjourn: str, standin: str, streamed: bool) -> None:
    """The same is asked of the engine's own endpoint, which this one does not have."""
    fields = {"stream": streamed, "standin": {"status": 429}}
    direct, ours = ask(standin, **fields), ask(adjourn, **fields)
    assert (ours.status_code, ours.content) == (direct.status_code, direct.content)
