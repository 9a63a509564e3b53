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

from adjourn.server.errors import GatewayError
from adjourn.server.metrics import Metrics
from adjourn.server.relay.relay import Relay
from adjourn.server.stream.chunk import (
    Chunk,
    IdRewriter,
    decode_chunk,
    encode_event,
    with_choice_index,
)
from adjourn.server.stream.sinks import Sink
from adjourn.server.stream.sse import event_data

__all__ = ["ChoiceSink", "MultiChoice"]

_DONE = b"[DONE]"


class MultiChoice:
    """``parts`` are the sinks of the choices' relays. ``run`` carries them all to the one sink.

    Raises GatewayError only while nothing was written.
    """

    def __init__(self, sink: Sink, choice_count: int, metrics: Metrics) -> None:
        self.choice_sinks = [ChoiceSink(self, index) for index in range(choice_count)]
        self.sink = sink
        self.all_opened = asyncio.Event()
        self.first_choice_started = asyncio.Event()
        self.first_chunk = Chunk()
        self._metrics = metrics
        self._write_lock = asyncio.Lock()

    async def run(self, relays: Sequence[Relay]) -> int:
        """The response's status."""
        tasks = [asyncio.ensure_future(relay.run()) for relay in relays]
        try:
            await asyncio.gather(*tasks)
        except _ChoiceRefused as refused:
            return refused.status
        except GatewayError as error:
            return await self._fail(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._finish_response()
        return 200

    async def write(self, events: list[bytes]) -> None:
        async with self._write_lock:
            await self.sink.write(events)

    async def _fail(self, error: GatewayError) -> int:
        if not self.sink.has_started:
            raise error  # who answers with it counts it
        if error.reason is not None:
            self._metrics.upstream_errors.labels(error.reason).inc()
        await self.sink.fail(error)
        return error.status

    async def _finish_response(self) -> None:
        note = self._merge_summaries()
        last = [encode_event(_DONE)]
        if (usage := self._merge_usage()) is not None:
            if note is not None:
                usage["adjourn"] = note
            last.insert(0, encode_event(msgspec.json.encode(usage)))
        await self.write(last)
        await self.sink.end(note)

    def _merge_usage(self) -> dict[str, Any] | None:
        """The usage chunk of all: the prompt once, and what the client got of every choice."""
        chunks = [part.usage_chunk for part in self.choice_sinks if part.usage_chunk is not None]
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

    def _merge_summaries(self) -> dict[str, Any] | None:
        """The choices' notes, and the tokens of them all; None where no choice has one."""
        notes = [part.summary for part in self.choice_sinks]
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


class ChoiceSink:
    """Where the relay of one choice writes."""

    has_started = False  # an error of one choice is the whole response's

    def __init__(self, multi_choice: MultiChoice, index: int) -> None:
        self.usage_chunk: dict[str, Any] | None = None
        self.summary: dict[str, Any] | None = None
        self.is_open = False
        self._multi_choice = multi_choice
        self._index = index
        self._rewrite_id: IdRewriter | None = None

    def open(self, response: httpx.Response) -> None:
        self.is_open = True
        if self._index == 0:
            self._multi_choice.sink.open(response)
        if all(part.is_open for part in self._multi_choice.choice_sinks):
            self._multi_choice.all_opened.set()

    async def forward_response(self, response: httpx.Response) -> None:
        await self._multi_choice.sink.forward_response(response)
        raise _ChoiceRefused(response.status_code)

    async def write(self, events: list[bytes]) -> None:
        """Nothing is written before all choices are open: one may still be refused."""
        chorus = self._multi_choice
        await (chorus.first_choice_started if self._index else chorus.all_opened).wait()
        told = [shown for event in events if (shown := self._rewrite_event(event)) is not None]
        if told:
            await chorus.write(told)
            chorus.first_choice_started.set()

    def _rewrite_event(self, event: bytes) -> bytes | None:
        """The event as one of the whole response; None for what comes once, at its end."""
        data = event_data(event)
        if data is None or data == _DONE:
            return event if data is None else None
        if b'"choices":[]' in event:
            self.usage_chunk = msgspec.json.decode(data)
            return None
        if self._rewrite_id is None:
            self._rewrite_id = self._make_id_rewriter(data)
        return with_choice_index(self._rewrite_id(event), self._index)

    def _make_id_rewriter(self, data: bytes) -> IdRewriter:
        chunk = decode_chunk(data)
        if self._index == 0:
            self._multi_choice.first_chunk = chunk
        return IdRewriter(self._multi_choice.first_chunk, chunk)

    async def end(self, summary: dict[str, Any] | None) -> None:
        self.summary = summary

    async def fail(self, error: GatewayError) -> None:
        raise error


class _ChoiceRefused(Exception):
    """The engine refused a choice, and so all of them; its answer went to the client."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
