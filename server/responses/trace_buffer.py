"""One of several traces of a request, kept until it is known whether it is the response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx
import msgspec

from adjourn.policies.evidence.answers import extract_final_answer
from adjourn.policies.policy import Policy
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.server.errors import GatewayError
from adjourn.server.stream.chunk import Chunk, IdRewriter, decode_chunk, encode_event
from adjourn.server.stream.sinks import assemble_message
from adjourn.server.stream.sse import event_data

if TYPE_CHECKING:
    from adjourn.server.relay.relay import Relay

__all__ = ["Outcome", "Race", "TraceBuffer"]

_DONE = b"[DONE]"
_SUMMARY_KEY = b',"adjourn":{'
Outcome = Literal["chosen", "answered", "given-up", "failed"]


class Race(Protocol):
    """What a lane tells of."""

    def on_opened(self, response: httpx.Response) -> None: ...

    async def on_refused(self, trace: TraceBuffer, response: httpx.Response) -> None: ...

    def on_progress(self, trace: TraceBuffer) -> None:
        """Something came."""

    def summarize(self) -> dict[str, Any]: ...

    async def write(self, events: list[bytes]) -> None: ...


class TraceBuffer:
    """Where the relay of one trace, which runs this policy, writes. ``outcome`` is None while it
    runs; ``tell`` begins to hand on what is kept, and from then on all that comes."""

    has_started = False  # an error is the client's only where no trace is left

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
        self.last_reported_position = (
            0  # tokens of its thought at which the policy last heard of it
        )
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

    # -- the sink of the relay -----------------------------------------------------------------

    def open(self, response: httpx.Response) -> None:
        self._race.on_opened(response)

    async def forward_response(self, response: httpx.Response) -> None:
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
        """The response ends when the race does."""

    async def fail(self, error: GatewayError) -> None:
        raise error

    # -- what became of it ---------------------------------------------------------------------

    async def start_forwarding(self) -> None:
        self._is_forwarding = True
        async with self._forward_lock:
            kept, self._buffered_events = self._buffered_events, []
            if kept:
                await self._forward(kept)

    async def _forward(self, events: Sequence[bytes]) -> None:
        await self._race.write([self._rewrite_event(event) for event in events])

    def _rewrite_event(self, event: bytes) -> bytes:
        """The event as one of the client's response: under its id, with the note on all traces."""
        data = event_data(event)
        if data is None or data == _DONE:
            return event
        if self.index:
            if self._rewrite_id is None:
                own = decode_chunk(data)
                wanted = own.id.removesuffix(f"-{self.index}")
                self._rewrite_id = IdRewriter(Chunk(wanted, own.created), own)
            event = self._rewrite_id(event)
        if _SUMMARY_KEY in event:
            chunk = msgspec.json.decode(event_data(event) or b"{}")
            event = encode_event(msgspec.json.encode(chunk | {"adjourn": self._race.summarize()}))
        return event

    def read_reasoning(self) -> str:
        """What the trace has thought so far, under whatever name the client gets it."""
        kept = self._buffered_events[: self._answer_start or None]
        message = assemble_message(kept)
        thought: str = message.get("reasoning") or message.get("reasoning_content") or ""
        return thought or (message.get("content") or "").removeprefix("<think>\n")

    def read_answer(self) -> tuple[str, str]:
        """(the whole answer's text, what it says): its tool calls, else its last box, else all."""
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
    """A tool call by what it does."""
    function = call.get("function") or {}
    arguments = function.get("arguments") or ""
    with contextlib.suppress(msgspec.MsgspecError):  # else they are compared as text
        arguments = msgspec.json.decode(arguments)
    return {"name": function.get("name"), "arguments": arguments}
