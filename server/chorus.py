"""Several choices of one response: each is relayed on its own, and they are told as one.

The engine's own ``n`` cannot be used: nothing ends one of its choices early, so one that was cut
would run on, unseen, to its own end. Here each choice has a main stream of its own. That costs what
``n`` costs, as the engine runs the choices of a request apart too, on the same cached prompt; and
with the seeds that the engine would give them the choices are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec

from server.errors import GatewayError
from server.metrics import Metrics
from server.relay import Relay
from server.sinks import Sink
from server.sse import data_of
from server.wire import Chunk, Renamer, decode_chunk, event_of, with_index

__all__ = ["Chorus", "Part"]

_DONE = b"[DONE]"


class Chorus:
    """``parts`` are the sinks of the choices' relays. ``run`` carries them all to the one sink.

    Raises GatewayError only while nothing was written.
    """

    def __init__(self, sink: Sink, choices: int, metrics: Metrics) -> None:
        self.parts = [Part(self, index) for index in range(choices)]
        self.sink = sink
        self.all_open = asyncio.Event()
        self.first_told = asyncio.Event()
        self.first = Chunk()
        self._metrics = metrics
        self._writing = asyncio.Lock()

    async def run(self, relays: Sequence[Relay]) -> int:
        """The response's status."""
        tasks = [asyncio.ensure_future(relay.run()) for relay in relays]
        try:
            await asyncio.gather(*tasks)
        except _Refused as refused:
            return refused.status
        except GatewayError as error:
            return await self._fail(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._end()
        return 200

    async def write(self, events: list[bytes]) -> None:
        async with self._writing:
            await self.sink.write(events)

    async def _fail(self, error: GatewayError) -> int:
        if not self.sink.began:
            raise error  # who answers with it counts it
        if error.reason is not None:
            self._metrics.upstream_errors.labels(error.reason).inc()
        await self.sink.fail(error)
        return error.status

    async def _end(self) -> None:
        note = self._note()
        last = [event_of(_DONE)]
        if (usage := self._usage()) is not None:
            if note is not None:
                usage["adjourn"] = note
            last.insert(0, event_of(msgspec.json.encode(usage)))
        await self.write(last)
        await self.sink.end(note)

    def _usage(self) -> dict[str, Any] | None:
        """The usage chunk of all: the prompt once, and what the client got of every choice."""
        chunks = [part.usage for part in self.parts if part.usage is not None]
        if not chunks:
            return None
        whole = chunks[0]
        usage = whole["usage"]
        for other in (chunk["usage"] for chunk in chunks[1:]):
            usage["completion_tokens"] += other["completion_tokens"]
            usage["total_tokens"] += other["completion_tokens"]
            thought = other.get("completion_tokens_details") or {}
            details = usage.get("completion_tokens_details") or {}
            for key in details.keys() & thought.keys():
                details[key] = (details[key] or 0) + (thought[key] or 0)
        return whole

    def _note(self) -> dict[str, Any] | None:
        """The choices' notes, and the tokens of them all; None where no choice has one."""
        notes = [part.note for part in self.parts]
        told = [note for note in notes if note is not None]
        if not told:
            return None
        tokens = {kind: sum(note["tokens"][kind] for note in told) for kind in told[0]["tokens"]}
        return {
            "stopped": any(note["stopped"] for note in told),
            "policy": told[0]["policy"],
            "tokens": tokens | {"prompt": told[0]["tokens"]["prompt"]},
            "choices": notes,
        }


class Part:
    """Where the relay of one choice writes."""

    began = False  # an error of one choice is the whole response's

    def __init__(self, chorus: Chorus, index: int) -> None:
        self.usage: dict[str, Any] | None = None
        self.note: dict[str, Any] | None = None
        self.opened = False
        self._chorus = chorus
        self._index = index
        self._rename: Renamer | None = None

    def open(self, response: httpx.Response) -> None:
        self.opened = True
        if self._index == 0:
            self._chorus.sink.open(response)
        if all(part.opened for part in self._chorus.parts):
            self._chorus.all_open.set()

    async def hand_through(self, response: httpx.Response) -> None:
        await self._chorus.sink.hand_through(response)
        raise _Refused(response.status_code)

    async def write(self, events: list[bytes]) -> None:
        """Nothing is written before all choices are open: one may still be refused."""
        chorus = self._chorus
        await (chorus.first_told if self._index else chorus.all_open).wait()
        told = [shown for event in events if (shown := self._told(event)) is not None]
        if told:
            await chorus.write(told)
            chorus.first_told.set()

    def _told(self, event: bytes) -> bytes | None:
        """The event as one of the whole response; None for what comes once, at its end."""
        data = data_of(event)
        if data is None or data == _DONE:
            return event if data is None else None
        if b'"choices":[]' in event:
            self.usage = msgspec.json.decode(data)
            return None
        if self._rename is None:
            self._rename = self._renamer(data)
        return with_index(self._rename(event), self._index)

    def _renamer(self, data: bytes) -> Renamer:
        chunk = decode_chunk(data)
        if self._index == 0:
            self._chorus.first = chunk
        return Renamer(self._chorus.first, chunk)

    async def end(self, note: dict[str, Any] | None) -> None:
        self.note = note

    async def fail(self, error: GatewayError) -> None:
        raise error


class _Refused(Exception):
    """The engine refused a choice, and so all of them; its answer went to the client."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
