"""The buffer of one of several traces of a request, kept until the race chooses one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from adjourn.policies.evidence.answers import extract_final_answer
from adjourn.policies.policy import Policy
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.server.errors import GatewayError
from adjourn.server.stream.assembler import assemble_message
from adjourn.server.stream.chunk import Chunk, IdRewriter, decode_chunk, encode_event
from adjourn.server.stream.sse import event_data
from adjourn.server.upstream import http

if TYPE_CHECKING:
    from adjourn.server.relay.relay import Relay

__all__ = ["Outcome", "Race", "TraceBuffer"]

_DONE = b"[DONE]"
_SUMMARY_KEY = b',"adjourn":{'
Outcome = Literal["chosen", "answered", "given-up", "failed"]


class Race(Protocol):
    """The owner of the traces, which a ``TraceBuffer`` notifies."""

    def on_opened(self, response: http.Response) -> None:
        """The engine accepted a trace."""

    async def on_refused(self, trace: TraceBuffer, response: http.Response) -> None:
        """The engine refused a trace with this response."""

    def on_progress(self, trace: TraceBuffer) -> None:
        """A trace got more events."""

    def summarize(self) -> dict[str, Any]:
        """The summary of all traces, for the client."""

    async def write(self, events: list[bytes]) -> None:
        """Send these events to the client."""


class TraceBuffer:
    """The sink of the relay of one trace, which runs ``policy``.

    Events are kept until ``start_forwarding``; from then on they go to the client as they arrive.
    State that the race sets: ``relay`` and ``task``; ``outcome``, None while the trace runs;
    ``trace_closed``, true once the race has reported the end of the reasoning; ``answer_label``;
    ``lowest_confidence``; ``last_reported_position`` in tokens of the reasoning; ``reward``; and
    ``error``. State of the buffer: the kept events and ``_answer_start``, the index of the first
    kept event of the answer.
    """

    has_started = False  # the client gets an error of one trace only if no other trace is left

    def __init__(self, race: Race, index: int, policy: Policy) -> None:
        self.index = index
        self.policy = policy
        self.relay: Relay | None = None
        self.task: asyncio.Task[None] | None = None
        self.outcome: Outcome | None = None
        self.error: GatewayError | None = None
        self.trace_closed = False
        self.answer_label: int | None = None
        self.lowest_confidence: float | None = None
        self.last_reported_position = 0
        self.reward: float | None = None
        self._race = race
        self._buffered_events: list[bytes] = []
        self._answer_start = 0
        self._is_forwarding = False
        self._forward_lock = asyncio.Lock()
        self._rewrite_id: Callable[[bytes], bytes] | None = None

    @property
    def session(self) -> Session:
        assert self.relay is not None
        return self.relay.session

    def open(self, response: http.Response) -> None:
        self._race.on_opened(response)

    async def forward_response(self, response: http.Response) -> None:
        await self._race.on_refused(self, response)

    async def write(self, events: list[bytes]) -> None:
        if self._is_forwarding:
            async with self._forward_lock:
                await self._forward(events)
            return
        before = len(self._buffered_events)
        self._buffered_events.extend(events)
        if not self.trace_closed and self.session.state in (State.ANSWERING, State.DONE):
            self._answer_start = before
        self._race.on_progress(self)

    async def end(self, summary: dict[str, Any] | None) -> None:
        """Nothing to do: the race ends the client's response."""

    async def fail(self, error: GatewayError) -> None:
        raise error

    async def start_forwarding(self) -> None:
        """Send the kept events, and from now on every new one."""
        self._is_forwarding = True
        async with self._forward_lock:
            kept, self._buffered_events = self._buffered_events, []
            if kept:
                await self._forward(kept)

    async def _forward(self, events: Sequence[bytes]) -> None:
        await self._race.write([self._rewrite_event(event) for event in events])

    def _rewrite_event(self, event: bytes) -> bytes:
        """The event with the id of the client's response and the summary of all traces."""
        data = event_data(event)
        if data is None or data == _DONE:
            return event
        if self.index:
            if self._rewrite_id is None:
                chunk = decode_chunk(data)
                client_id = chunk.id.removesuffix(f"-{self.index}")
                self._rewrite_id = IdRewriter(Chunk(client_id, chunk.created), chunk)
            event = self._rewrite_id(event)
        if _SUMMARY_KEY in event:
            fields = msgspec.json.decode(event_data(event) or b"{}")
            event = encode_event(msgspec.json.encode(fields | {"adjourn": self._race.summarize()}))
        return event

    def read_reasoning(self) -> str:
        """The reasoning so far, from whichever field the client gets it in."""
        kept = self._buffered_events[: self._answer_start or None]
        message = assemble_message(kept)
        reasoning: str = message.get("reasoning") or message.get("reasoning_content") or ""
        return reasoning or (message.get("content") or "").removeprefix("<think>\n")

    def read_answer(self) -> tuple[str, str]:
        """(text of the answer, final answer): the latter is its tool calls as JSON, else the
        content of its last ``\\boxed{}``, else the whole text."""
        message = assemble_message(self._buffered_events[self._answer_start :])
        text = message.get("content") or message.get("text") or ""
        for marker in self.session.dialect.definition.end:
            text = text.rpartition(marker)[2]
        if calls := message.get("tool_calls"):
            return text, msgspec.json.encode(
                [_normalize_tool_call(call) for call in calls]
            ).decode()
        return text, extract_final_answer(text)


def _normalize_tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """The name and decoded arguments, so that equal calls compare equal."""
    function = call.get("function") or {}
    arguments = function.get("arguments") or ""
    with contextlib.suppress(msgspec.MsgspecError):  # invalid JSON is compared as text
        arguments = msgspec.json.decode(arguments)
    return {"name": function.get("name"), "arguments": arguments}
