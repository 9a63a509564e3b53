"""One of several traces of a request, kept until it is known whether it is the response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import httpx
import msgspec

from policies.answers import final_answer
from policies.policy import Policy
from policies.session import Session
from policies.states import State
from server.errors import GatewayError
from server.sinks import joined
from server.sse import data_of
from server.wire import Chunk, Renamer, decode_chunk, event_of

if TYPE_CHECKING:
    from server.relay import Relay

__all__ = ["Lane", "Outcome", "Race"]

_DONE = b"[DONE]"
_NOTE = b',"adjourn":{'
Outcome = Literal["chosen", "answered", "given-up", "failed"]


class Race(Protocol):
    """What a lane tells of."""

    def opened(self, response: httpx.Response) -> None: ...

    async def refused(self, lane: Lane, response: httpx.Response) -> None: ...

    def look(self, lane: Lane) -> None:
        """Something came."""

    def note(self) -> dict[str, Any]: ...

    async def write(self, events: list[bytes]) -> None: ...


class Lane:
    """Where the relay of one trace, which runs this policy, writes. ``outcome`` is None while it
    runs; ``tell`` begins to hand on what is kept, and from then on all that comes."""

    began = False  # an error is the client's only where no trace is left

    def __init__(self, race: Race, index: int, policy: Policy) -> None:
        self.index = index
        self.policy = policy
        self.relay: Relay | None = None
        self.task: asyncio.Task[None] | None = None
        self.outcome: Outcome | None = None
        self.error: GatewayError | None = None
        self.closed = False
        self.label: int | None = None
        self.lowest: float | None = None
        self.goal = 0  # tokens of its thought at which the policy last heard of it
        self.reward: float | None = None
        self._race = race
        self._kept: list[bytes] = []
        self._answer_from = 0
        self._telling = False
        self._turn = asyncio.Lock()
        self._rename: Callable[[bytes], bytes] | None = None

    @property
    def session(self) -> Session:
        assert self.relay is not None
        return self.relay.session

    # -- the sink of the relay -----------------------------------------------------------------

    def open(self, response: httpx.Response) -> None:
        self._race.opened(response)

    async def hand_through(self, response: httpx.Response) -> None:
        await self._race.refused(self, response)

    async def write(self, events: list[bytes]) -> None:
        if self._telling:
            async with self._turn:
                await self._hand_on(events)
            return
        before = len(self._kept)
        self._kept.extend(events)
        if not self.closed and self.session.state in (State.ANSWERING, State.DONE):
            self._answer_from = before
        self._race.look(self)

    async def end(self, note: dict[str, Any] | None) -> None:
        """The response ends when the race does."""

    async def fail(self, error: GatewayError) -> None:
        raise error

    # -- what became of it ---------------------------------------------------------------------

    async def tell(self) -> None:
        self._telling = True
        async with self._turn:
            kept, self._kept = self._kept, []
            if kept:
                await self._hand_on(kept)

    async def _hand_on(self, events: Sequence[bytes]) -> None:
        await self._race.write([self._told(event) for event in events])

    def _told(self, event: bytes) -> bytes:
        """The event as one of the client's response: under its id, with the note on all traces."""
        data = data_of(event)
        if data is None or data == _DONE:
            return event
        if self.index:
            if self._rename is None:
                own = decode_chunk(data)
                wanted = own.id.removesuffix(f"-{self.index}")
                self._rename = Renamer(Chunk(wanted, own.created), own)
            event = self._rename(event)
        if _NOTE in event:
            chunk = msgspec.json.decode(data_of(event) or b"{}")
            event = event_of(msgspec.json.encode(chunk | {"adjourn": self._race.note()}))
        return event

    def thought(self) -> str:
        """What the trace has thought so far, under whatever name the client gets it."""
        kept = self._kept[: self._answer_from or None]
        message = joined(kept)
        thought: str = message.get("reasoning") or message.get("reasoning_content") or ""
        return thought or (message.get("content") or "").removeprefix("<think>\n")

    def answer(self) -> tuple[str, str]:
        """(the whole answer's text, what it says): its tool calls, else its last box, else all."""
        message = joined(self._kept[self._answer_from :])
        text = message.get("content") or message.get("text") or ""
        for marker in self.session.marks.dialect.end:
            text = text.rpartition(marker)[2]
        if calls := message.get("tool_calls"):
            return text, msgspec.json.encode([_called(call) for call in calls]).decode()
        return text, final_answer(text)


def _called(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call by what it does."""
    function = call.get("function") or {}
    arguments = function.get("arguments") or ""
    with contextlib.suppress(msgspec.MsgspecError):  # else they are compared as text
        arguments = msgspec.json.decode(arguments)
    return {"name": function.get("name"), "arguments": arguments}
