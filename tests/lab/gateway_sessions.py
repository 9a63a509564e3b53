"""What a gateway's own session was told, kept as a trace, and the decisions that it took.

The gateway runs in this process, on whatever engine; its sessions write down what they are fed.
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
    """A session that keeps what it is told and what it commands."""

    instances: list[RecordingSession] = []  # noqa: RUF012

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__(*values, **options)
        self.events: list[LogEvent] = []
        self.commands: list[Order] = []
        self.pending_probe: SendProbe | None = None
        self.probe_sent_at = self.commanded_at = (
            0.0  # when the last ask, the last command was given
        )
        self.late_probe_tokens = 0  # tokens of probes that the trace's end did not wait for: a race
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
        said, told = "." if answering else "", tuple(map(tuple, logprobs))
        piece = StreamedChunk(
            at, reasoning, tuple(token_ids), said, finish_reason=finish_reason, logprobs=told
        )
        self.events.append(piece)
        command = super().feed(
            reasoning,
            token_ids,
            at,
            answering=answering,
            finish_reason=finish_reason,
            logprobs=logprobs,
        )
        return self._record_command(command, at)

    def on_probe_result(
        self, result: ProbeResult, *, prefilled: int = 0, decoded: int = 0
    ) -> Order | None:
        ask, written = self.pending_probe, serialization.to_json_value(result)
        assert ask is not None
        self.pending_probe = None
        if self.trigger is None and self.state not in (State.THINKING, State.PROBING):
            self.late_probe_tokens += max(len(result.tokens), decoded)
        self.events.append(
            ProbeCompleted(
                result.at, self.probe_sent_at, ask.kept, ask.position, written, prefilled, decoded
            )
        )
        command = super().on_probe_result(result, prefilled=prefilled, decoded=decoded)
        return self._record_command(command, result.at)

    def on_resumed(self) -> None:
        cut, now = self.commands[-1], time.perf_counter()
        began = now - self.commanded_at
        self.events.append(
            CutExecuted(now, self.commanded_at, began, cut.kept, cut.position, "", 0)
        )
        super().on_resumed()

    def close(self) -> None:
        """A probe that never came back is in the log as one that comes too late."""
        ask = self.pending_probe
        if ask is not None:
            failed = ProbeFailed(ask.probe, ask.position, "timeout", _NEVER)
            written = serialization.to_json_value(failed)
            self.events.append(
                ProbeCompleted(_NEVER, self.probe_sent_at, ask.kept, ask.position, written)
            )

    def _record_command(self, command: Order | None, at: float) -> Order | None:
        if command is not None:
            self.commands.append(command)
            self.commanded_at = at
        if isinstance(command, SendProbe):
            self.pending_probe, self.probe_sent_at = command, at
        return command


def run_through_gateway(
    upstream: str, policy: str, bodies: Sequence[dict[str, Any]]
) -> list[RecordingSession]:
    """The sessions of a gateway that served these requests, one after the other."""
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
    """Each command with its place, and what became of the trigger."""
    commands = [
        [type(c).__name__, c.kept, c.position, getattr(getattr(c, "probe", None), "max_tokens", 0)]
        for c in session.commands
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
    policy: str, marks: TokenizedDialect, traces: Sequence[list[LogEvent]]
) -> list[dict[str, Any]]:
    """The decisions of the laboratory's player on these events, in their order."""
    RecordingSession.instances = []
    appraiser = ProbeCostModel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "Session", RecordingSession)
        for events in traces:
            tape = ReplayTrace(Trace("p", 0, [], None, events), marks)
            resume = tape.executed_cuts[0].first_chunk_seconds if tape.executed_cuts else 0.0
            replay_trace(parse(policy), tape, marks, appraiser, resume_seconds=resume)
    return [decisions(session) for session in RecordingSession.instances]
