"""Objects of a finished request are freed at once."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import httpx
import pytest

from adjourn.server.app import create_app
from adjourn.server.config import Settings
from adjourn.server.relay.relay import Relay
from adjourn.server.responses.passthrough import RawSendMiddleware
from adjourn.server.responses.policy_response import PolicyResponse
from adjourn.server.responses.race import TraceRace
from adjourn.server.responses.trace_buffer import TraceBuffer
from tests.gateway_client import CHAT, body


async def _remaining_objects(upstream: str, path: str, fields: dict[str, Any]) -> list[str]:
    urls: dict[str, Any] = dict.fromkeys(("upstream", "embeddings_url", "reward_url"), upstream)
    app = create_app(Settings(**urls, policy="deer"))
    transport = httpx.ASGITransport(RawSendMiddleware(app))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        while not app.state.gateway.is_ready:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        gc.collect()
        gc.disable()  # so that only reference counting can free the objects
        try:
            reply = await client.post(path, json=body(standin={"tokens": 50}, **fields))
            assert reply.status_code == 200
            await asyncio.sleep(0)  # finished tasks are released in the next loop iteration
            kinds = (PolicyResponse, Relay, TraceBuffer, TraceRace)
            return [type(o).__name__ for o in gc.get_objects() if isinstance(o, kinds)]
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {}),
        (CHAT, {"stream": True}),
        (CHAT, {"n": 2, "temperature": 1}),
        (CHAT, {"adjourn": {"policy": "first-finish"}}),
        (CHAT, {"stream": True, "adjourn": {"policy": "early-consistency(deer, window=2, max=2)"}}),
        (CHAT, {"adjourn": {"policy": "partial-reward(traces=4, tokens=20)"}}),
        (CHAT, {"stream": True, "adjourn": {"policy": "partial-reward(traces=2, tokens=20)"}}),
        (CHAT, {"adjourn": {"policy": "redundancy(by='embedding', min_steps=1)"}}),
        ("/v1/messages", {"max_tokens": 99}),
        ("/v1/messages", {"max_tokens": 99, "stream": True}),
    ],
)
def test_a_finished_request_needs_no_garbage_collection(
    standin: str, path: str, fields: dict[str, Any]
) -> None:
    """Reference cycles would keep its memory until the collector runs, which is rare."""
    assert asyncio.run(_remaining_objects(standin, path, fields)) == []
