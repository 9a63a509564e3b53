"""A response whose client goes away."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Send

from adjourn.server.metrics import Metrics
from adjourn.server.responses.passthrough import CancellableResponse

LABELS = ("/v1/messages", "m", "p")


class Unending(CancellableResponse):
    """Has sent something, and goes on until it is cancelled."""

    has_started = True
    phase = "streaming"
    is_complete = False

    async def respond(self, send: Send) -> int:
        await asyncio.Event().wait()
        return 200


@pytest.mark.parametrize(("finished", "status", "left"), [(True, "200", 0), (False, "499", 1)])
def test_a_client_that_leaves(finished: bool, status: str, left: int) -> None:
    """It has left early only if there was more to come."""
    metrics = Metrics()
    response = Unending(metrics, LABELS, 0.0)
    response.is_complete = finished  # type: ignore[misc]

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None: ...

    asyncio.run(response({"type": "http"}, receive, send))
    assert metrics.requests.labels(*LABELS, status)._value.get() == 1
    assert metrics.client_disconnects.labels("streaming")._value.get() == left
