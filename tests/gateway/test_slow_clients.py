"""A client that reads slowly gets everything, in order, and nothing behind a cut."""

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


async def through_a_slow_socket(upstream: str, scenario: dict[str, Any]) -> list[Message]:
    """What the application sends, where each large write takes a tenth of a second."""
    app = create_app(Settings(upstream=upstream, hold_out=0, policy="deer"))
    asked = json.dumps(body(stream=True, standin=scenario)).encode()
    waiting = [{"type": "http.request", "body": asked, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
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
def test_nothing_is_lost_while_a_write_waits(standin: str, logprob: float) -> None:
    """What was held back meets a full socket while the stream goes on and ends."""
    scenario = {"tokens": 1500, "rate": 1500, "cues": [100], "probe_delay": 0.08}
    scenario["trial_logprob"] = logprob
    sent = asyncio.run(through_a_slow_socket(standin, scenario))
    finals = [i for i, m in enumerate(sent) if m.get("more_body") is False]
    assert finals == [len(sent) - 1]
    told = events(b"".join(m.get("body", b"") for m in sent))
    assert told[-1] == "[DONE]"
    thought = "".join(
        c["choices"][0]["delta"].get("reasoning", "") for c in told[:-1] if c["choices"]
    )
    whole = "".join(
        c["choices"][0]["delta"].get("reasoning", "")
        for c in stream(standin, standin=scenario)[:-1]
        if c["choices"]
    )
    if logprob == -3.0:
        assert thought == whole
    else:
        assert thought == whole.partition(" Wait")[0]
