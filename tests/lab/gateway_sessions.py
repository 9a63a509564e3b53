"""Record the inputs of a gateway's sessions as traces, with the decisions that the sessions took.

The gateway runs in this process, in front of any engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from adjourn.lab import replay, serialization
from adjourn.lab.replay import replay_trace
from adjourn.lab.replay_trace import ReplayTrace
from adjourn.lab.trace_log import (
    CutExecuted,
    LogEvent,
    ProbeCompleted,
    PromptReceived,
    StreamedChunk,
    Trace,
)
from adjourn.policies.events import ProbeFailed, ProbeResult
from adjourn.policies.registry import parse
from adjourn.policies.session.orders import Order, SendProbe
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.server.app import create_app
from adjourn.server.config import Settings
from tests.gateway_client import CHAT

__all__ = ["decisions", "replay_decisions", "run_through_gateway"]


_NEVER = 1e9


class RecordingSession(Session):
    """A session that records its inputs as log events, and its orders."""

    instances: list[RecordingSession] = []  # noqa: RUF012

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__(*values, **options)
        self.events: list[LogEvent] = []
        self.orders: list[Order] = []
        self.pending_probe: SendProbe | None = None
        self.probe_sent_at = self.ordered_at = 0.0  # times of the last probe, of the last order
        # Tokens of probes whose result came after the end of the trace. Whether it does is a race,
        # so they are not compared.
        self.late_probe_tokens = 0
        self.instances.append(self)

    def on_prompt(self, prompt: Sequence[int]) -> None:
        self.events.append(PromptReceived(0.0, tuple(prompt)))
        super().on_prompt(prompt)

    def feed(
        self,
        reasoning: str,
        token_ids: Sequence[int],
        at: float,
        *,
        answering: bool = False,
        finish_reason: str | None = None,
        logprobs: Sequence[Sequence[float]] = (),
    ) -> Order | None:
        chunk = StreamedChunk(
            at,
            reasoning,
            tuple(token_ids),
            "." if answering else "",
            finish_reason=finish_reason,
            logprobs=tuple(map(tuple, logprobs)),
        )
        self.events.append(chunk)
        order = super().feed(
            reasoning,
            token_ids,
            at,
            answering=answering,
            finish_reason=finish_reason,
            logprobs=logprobs,
        )
        return self._record_order(order, at)

    def on_probe_result(
        self, result: ProbeResult, *, prefilled: int = 0, decoded: int = 0
    ) -> Order | None:
        probe, written = self.pending_probe, serialization.to_json_value(result)
        assert probe is not None
        self.pending_probe = None
        if self.trigger is None and self.state not in (State.THINKING, State.PROBING):
            self.late_probe_tokens += max(len(result.tokens), decoded)
        self.events.append(
            ProbeCompleted(
                result.at,
                self.probe_sent_at,
                probe.kept,
                probe.position,
                written,
                prefilled,
                decoded,
            )
        )
        order = super().on_probe_result(result, prefilled=prefilled, decoded=decoded)
        return self._record_order(order, result.at)

    def on_resumed(self) -> None:
        cut, now = self.orders[-1], time.perf_counter()
        seconds = now - self.ordered_at
        self.events.append(
            CutExecuted(now, self.ordered_at, seconds, cut.kept, cut.position, "", 0)
        )
        super().on_resumed()

    def close(self) -> None:
        """Log a probe that never returned as one that fails after the end."""
        probe = self.pending_probe
        if probe is not None:
            failed = ProbeFailed(probe.probe, probe.position, "timeout", _NEVER)
            written = serialization.to_json_value(failed)
            self.events.append(
                ProbeCompleted(_NEVER, self.probe_sent_at, probe.kept, probe.position, written)
            )

    def _record_order(self, order: Order | None, at: float) -> Order | None:
        if order is not None:
            self.orders.append(order)
            self.ordered_at = at
        if isinstance(order, SendProbe):
            self.pending_probe, self.probe_sent_at = order, at
        return order


def run_through_gateway(
    upstream: str, policy: str, bodies: Sequence[dict[str, Any]]
) -> list[RecordingSession]:
    """The sessions of a gateway after it has served these requests, one after the other."""
    RecordingSession.instances = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adjourn.server.responses.policy_response.Session", RecordingSession)
        asyncio.run(_serve(upstream, policy, bodies))
    for session in RecordingSession.instances:
        session.close()
    return RecordingSession.instances


async def _serve(upstream: str, policy: str, bodies: Sequence[dict[str, Any]]) -> None:
    app = create_app(Settings(upstream=upstream, policy=policy, hold_out=0))  # type: ignore[arg-type]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=120
        ) as client,
    ):
        while not app.state.gateway.is_ready:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for body in bodies:
            reply = await client.post(CHAT, json=body)
            assert reply.status_code == 200, reply.text


def decisions(session: Any) -> dict[str, Any]:
    """The orders with their positions, the trigger and the token counts."""
    commands = [
        [type(c).__name__, c.kept, c.position, getattr(getattr(c, "probe", None), "max_tokens", 0)]
        for c in session.orders
    ]
    trigger = session.trigger
    return {
        "commands": commands,
        "trigger": [trigger.position, trigger.stop.reason, trigger.action] if trigger else None,
        "reasoning": session.ledger.reasoning,
        "probe": session.ledger.probe - session.late_probe_tokens,
        "wasted": session.ledger.wasted,
    }


def replay_decisions(
    policy: str, dialect: TokenizedDialect, traces: Sequence[list[LogEvent]]
) -> list[dict[str, Any]]:
    """The decisions of a replay of these traces, in their order."""
    RecordingSession.instances = []
    cost_model = ProbeCostModel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "Session", RecordingSession)
        for events in traces:
            trace = ReplayTrace(Trace("p", 0, [], None, events), dialect)
            resume_seconds = (
                trace.executed_cuts[0].first_chunk_seconds if trace.executed_cuts else 0.0
            )
            replay_trace(parse(policy), trace, dialect, cost_model, resume_seconds=resume_seconds)
    return [decisions(session) for session in RecordingSession.instances]
