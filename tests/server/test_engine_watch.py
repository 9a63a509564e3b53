"""How often the engine is checked, and when its capabilities are detected again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import httpx
import pytest

from adjourn.policies.text.dialect import builtin_dialects
from adjourn.server import engine_watch
from adjourn.server.config import Settings
from adjourn.server.engine_watch import EngineWatch
from adjourn.server.engines.capabilities import Capabilities
from adjourn.server.metrics import Metrics
from adjourn.server.upstream.client import EngineClient

Respond = Callable[[httpx.Request], httpx.Response]


def check(
    respond: Respond, times: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[float], list[Capabilities], EngineWatch]:
    """The seconds of each pause, the reported changes, and the watch after so many checks."""
    pauses: list[float] = []
    reports: list[Capabilities] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == times:
            raise asyncio.CancelledError

    async def on_change(report: Capabilities) -> None:
        reports.append(report)

    async def run() -> EngineWatch:
        engine = EngineClient(Settings(recheck=7.0), httpx.MockTransport(respond))
        watch = EngineWatch(engine, builtin_dialects(), Metrics(), on_change)
        with contextlib.suppress(asyncio.CancelledError):
            await watch.run()
        return watch

    with monkeypatch.context() as patch:
        patch.setattr(engine_watch.asyncio, "sleep", pause)
        watch = asyncio.run(run())
    return pauses, reports, watch


def serve_no_model(request: httpx.Request) -> httpx.Response:
    """The shortest engine that counts as up."""
    if request.url.path == "/v1/models":
        return httpx.Response(200, json={"data": []})
    return httpx.Response(200 if request.url.path == "/health" else 404)


def test_an_engine_that_is_up_is_checked_every_recheck_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses, reports, watch = check(serve_no_model, 3, monkeypatch)
    assert pauses == [7.0, 7.0, 7.0]
    assert watch.is_up
    assert len(reports) == 1


def test_an_engine_that_is_down_is_checked_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses, reports, watch = check(lambda request: httpx.Response(503), 2, monkeypatch)
    assert pauses == [1.0, 1.0]
    assert not watch.is_up
    assert reports == []


def test_a_failed_health_check_makes_the_engine_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next check detects the capabilities again; the same ones are no change."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            return httpx.Response(500)
        return serve_no_model(request)

    pauses, reports, watch = check(respond, 3, monkeypatch)
    assert pauses == [7.0, 1.0, 7.0]
    assert watch.is_up
    assert len(reports) == 1
