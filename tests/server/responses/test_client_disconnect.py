"""Responses whose client disconnects."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Send

from adjourn.server.metrics import Metrics
from adjourn.server.responses.passthrough import CancellableResponse

LABELS = ("/v1/messages", "m", "p")


class EndlessResponse(CancellableResponse):
    """Has sent something, and runs until it is cancelled."""

    has_started = True
    phase = "streaming"
    is_complete = False

    async def respond(self, send: Send) -> int:
        await asyncio.Event().wait()
        return 200


@pytest.mark.parametrize(("complete", "status", "count"), [(True, "200", 0), (False, "499", 1)])
def test_a_disconnect_counts_only_before_the_response_is_complete(
    complete: bool, status: str, count: int
) -> None:
    """A client that already has the last event did not leave early."""
    metrics = Metrics()
    response = EndlessResponse(metrics, LABELS, 0.0)
    response.is_complete = complete  # type: ignore[misc]

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None: ...

    asyncio.run(response({"type": "http"}, receive, send))
    assert metrics.requests.labels(*LABELS, status)._value.get() == 1
    assert metrics.client_disconnects.labels("streaming")._value.get() == count
