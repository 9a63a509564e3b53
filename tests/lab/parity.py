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

from benchmarks.lab import replay, values
from benchmarks.lab.replay import play
from benchmarks.lab.tape import Tape
from benchmarks.lab.traces import Drawn, Event, Opened, Piece, Served, Trace
from policies.appraisal import Appraiser
from policies.dialect import Marks
from policies.events import ProbeFailed, ProbeResult
from policies.orders import Ask, Order
from policies.registry import parse
from policies.session import Session
from policies.states import State
from server.app import create_app
from server.config import Settings
from tests.exchange import CHAT

__all__ = ["decisions", "replayed", "served"]


_NEVER = 1e9


class Written(Session):
    """A session that keeps what it is told and what it commands."""

    made: list[Written] = []  # noqa: RUF012

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__(*values, **options)
        self.events: list[Event] = []
        self.commands: list[Order] = []
        self.question: Ask | None = None
        self.asked_at = self.ordered_at = 0.0  # when the last ask, the last command was given
        self.late = 0  # tokens of probes that the trace's end did not wait for: a race
        self.made.append(self)

    def opened(self, prompt: Sequence[int]) -> None:
        self.events.append(Opened(0.0, tuple(prompt)))
        super().opened(prompt)

    def feed(
        self,
        thought: str,
        token_ids: Sequence[int],
        at: float,
        *,
        answering: bool = False,
        ending: str | None = None,
        logprobs: Sequence[Sequence[float]] = (),
    ) -> Order | None:
        said, told = "." if answering else "", tuple(map(tuple, logprobs))
        piece = Piece(at, thought, tuple(token_ids), said, ending=ending, logprobs=told)
        self.events.append(piece)
        command = super().feed(
            thought, token_ids, at, answering=answering, ending=ending, logprobs=logprobs
        )
        return self._gave(command, at)

    def probed(self, result: ProbeResult, *, prefilled: int = 0, decoded: int = 0) -> Order | None:
        ask, written = self.question, values.write(result)
        assert ask is not None
        self.question = None
        if self.trigger is None and self.state not in (State.THINKING, State.PROBING):
            self.late += max(len(result.tokens), decoded)
        self.events.append(
            Drawn(result.at, self.asked_at, ask.kept, ask.position, written, prefilled, decoded)
        )
        command = super().probed(result, prefilled=prefilled, decoded=decoded)
        return self._gave(command, result.at)

    def resumed(self) -> None:
        cut, now = self.commands[-1], time.perf_counter()
        began = now - self.ordered_at
        self.events.append(Served(now, self.ordered_at, began, cut.kept, cut.position, "", 0))
        super().resumed()

    def close(self) -> None:
        """A probe that never came back is in the log as one that comes too late."""
        ask = self.question
        if ask is not None:
            failed = ProbeFailed(ask.probe, ask.position, "timeout", _NEVER)
            written = values.write(failed)
            self.events.append(Drawn(_NEVER, self.asked_at, ask.kept, ask.position, written))

    def _gave(self, command: Order | None, at: float) -> Order | None:
        if command is not None:
            self.commands.append(command)
            self.ordered_at = at
        if isinstance(command, Ask):
            self.question, self.asked_at = command, at
        return command


def served(upstream: str, policy: str, bodies: Sequence[dict[str, Any]]) -> list[Written]:
    """The sessions of a gateway that served these requests, one after the other."""
    Written.made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.judged.Session", Written)
        asyncio.run(_serve(upstream, policy, bodies))
    for session in Written.made:
        session.close()
    return Written.made


async def _serve(upstream: str, policy: str, bodies: Sequence[dict[str, Any]]) -> None:
    app = create_app(Settings(upstream=upstream, policy=policy, hold_out=0))  # type: ignore[arg-type]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://gateway", timeout=120
        ) as client,
    ):
        while not app.state.gateway.ready:  # noqa: ASYNC110
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
        "probe": session.ledger.probe - session.late,
        "wasted": session.ledger.wasted,
    }


def replayed(policy: str, marks: Marks, traces: Sequence[list[Event]]) -> list[dict[str, Any]]:
    """The decisions of the laboratory's player on these events, in their order."""
    Written.made = []
    appraiser = Appraiser()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "Session", Written)
        for events in traces:
            tape = Tape(Trace("p", 0, [], None, events), marks)
            resume = tape.served[0].began if tape.served else 0.0
            play(parse(policy), tape, marks, appraiser, resume=resume)
    return [decisions(session) for session in Written.made]
