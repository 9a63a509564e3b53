"""Anthropic's Messages, handed through: what the gateway itself says there is in that shape."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from server.app import create_app
from server.config import Settings
from server.errors import TooLarge, UpstreamDown, UpstreamTimeout, body_at, event_at

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
    assert json.loads(body_at("/v1/messages", error)) == said
    name, data = event_at("/v1/messages", error).rstrip().split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == said
    assert body_at("/v1/chat/completions", error) == error.body
    assert event_at("/v1/responses", error) == b"data: " + error.body + b"\n\n"
