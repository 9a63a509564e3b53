"""A client that reads slowly gets every chunk, in order, and nothing after a cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from adjourn.server.app import create_app
from adjourn.server.config import Settings
from tests.gateway_client import CHAT, body, events, stream

Message = MutableMapping[str, Any]


async def messages_over_a_slow_socket(upstream: str, scenario: dict[str, Any]) -> list[Message]:
    """The ASGI messages of one response, where each write of over 2,000 bytes takes 0.1 s."""
    app = create_app(Settings(upstream=upstream, hold_out=0, policy="deer"))
    request = json.dumps(body(stream=True, standin=scenario)).encode()
    incoming = [{"type": "http.request", "body": request, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if incoming:
            return incoming.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if len(message.get("body", b"")) > 2000:
            await asyncio.sleep(0.1)
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": CHAT,
        "raw_path": CHAT.encode(), "query_string": b"", "root_path": "", "headers": [],
        "server": ("a", 1), "client": ("b", 1), "asgi": {"version": "3.0"},
    }  # fmt: skip
    async with app.router.lifespan_context(app):
        while not app.state.gateway.is_ready:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("logprob", [-3.0, -0.001], ids=["unconvinced", "cut"])
def test_nothing_is_lost_while_a_write_blocks(standin: str, logprob: float) -> None:
    """Held-back chunks are released while the socket is full and the stream continues and ends."""
    scenario = {"tokens": 1500, "rate": 1500, "cues": [100], "probe_delay": 0.08}
    scenario["trial_logprob"] = logprob
    sent = asyncio.run(messages_over_a_slow_socket(standin, scenario))
    finals = [i for i, m in enumerate(sent) if m.get("more_body") is False]
    assert finals == [len(sent) - 1]
    chunks = events(b"".join(m.get("body", b"") for m in sent))
    assert chunks[-1] == "[DONE]"
    reasoning = "".join(
        c["choices"][0]["delta"].get("reasoning", "") for c in chunks[:-1] if c["choices"]
    )
    full_reasoning = "".join(
        c["choices"][0]["delta"].get("reasoning", "")
        for c in stream(standin, standin=scenario)[:-1]
        if c["choices"]
    )
    if logprob == -3.0:
        assert reasoning == full_reasoning
    else:
        assert reasoning == full_reasoning.partition(" Wait")[0]
