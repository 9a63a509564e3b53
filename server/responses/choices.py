"""Relay each choice of a request (``n`` > 1) separately, and merge them into one response.

The engine's own ``n`` cannot be used: it has no way to end one choice early, so a choice that was
cut would go on generating unseen to its own end. Here each choice has its own main stream. That
costs the same as ``n``, because the engine also runs the choices as separate sequences on the same
cached prompt, and with the seeds that the engine would assign, the choices are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

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
from adjourn.server.upstream import http

__all__ = ["ChoiceSink", "MultiChoice"]

_DONE = b"[DONE]"


class MultiChoice:
    """Merges the relays of all choices into ``sink``. Each relay writes to one of ``choice_sinks``.

    State that the choice sinks set: ``all_opened``, once the engine accepted every choice;
    ``first_choice_started``, once an event of choice 0 was written; and ``first_chunk`` of choice
    0, whose id and time the other choices take over.
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
        """Send the response and return its status. Raises GatewayError only before any write."""
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
            raise error  # counted by the caller that answers with it
        if error.reason is not None:
            self._metrics.upstream_errors.labels(error.reason).inc()
        await self.sink.fail(error)
        return error.status

    async def _finish_response(self) -> None:
        summary = self._merge_summaries()
        last_events = [encode_event(_DONE)]
        if (usage_chunk := self._merge_usage()) is not None:
            if summary is not None:
                usage_chunk["adjourn"] = summary
            last_events.insert(0, encode_event(msgspec.json.encode(usage_chunk)))
        await self.write(last_events)
        await self.sink.end(summary)

    def _merge_usage(self) -> dict[str, Any] | None:
        """One usage chunk: the prompt counted once, the completion tokens of all choices added."""
        chunks = [sink.usage_chunk for sink in self.choice_sinks if sink.usage_chunk is not None]
        if not chunks:
            return None
        merged = chunks[0]
        usage = merged["usage"]
        for other in (chunk["usage"] for chunk in chunks[1:]):
            usage["completion_tokens"] += other["completion_tokens"]
            usage["total_tokens"] += other["completion_tokens"]
            other_details = other.get("completion_tokens_details") or {}
            details = usage.get("completion_tokens_details") or {}
            for key in details.keys() & other_details.keys():
                details[key] = (details[key] or 0) + (other_details[key] or 0)
        return merged

    def _merge_summaries(self) -> dict[str, Any] | None:
        """The summary of each choice and the sum of their tokens; None if no choice has one."""
        summaries = [sink.summary for sink in self.choice_sinks]
        present = [summary for summary in summaries if summary is not None]
        if not present:
            return None
        first_tokens = present[0]["tokens"]
        tokens = {kind: sum(s["tokens"][kind] for s in present) for kind in first_tokens}
        return {
            "stopped": any(summary["stopped"] for summary in present),
            "policy": present[0]["policy"],
            "tokens": tokens | {"prompt": first_tokens["prompt"]},
            "choices": summaries,
        }


class ChoiceSink:
    """The sink of the relay of one choice.

    State: ``usage_chunk`` and ``summary`` of the choice, kept for the end of the response, and
    ``is_open``, true once the engine accepted the choice.
    """

    has_started = False  # an error of one choice fails the whole response

    def __init__(self, multi_choice: MultiChoice, index: int) -> None:
        self.usage_chunk: dict[str, Any] | None = None
        self.summary: dict[str, Any] | None = None
        self.is_open = False
        self._multi_choice = multi_choice
        self._index = index
        self._rewrite_id: IdRewriter | None = None

    def open(self, response: http.Response) -> None:
        self.is_open = True
        if self._index == 0:
            self._multi_choice.sink.open(response)
        if all(sink.is_open for sink in self._multi_choice.choice_sinks):
            self._multi_choice.all_opened.set()

    async def forward_response(self, response: http.Response) -> None:
        await self._multi_choice.sink.forward_response(response)
        raise _ChoiceRefused(response.status_code)

    async def write(self, events: list[bytes]) -> None:
        """Wait until all choices are open, as the engine may still refuse one; then write."""
        merged = self._multi_choice
        await (merged.first_choice_started if self._index else merged.all_opened).wait()
        rewritten = [new for event in events if (new := self._rewrite_event(event)) is not None]
        if rewritten:
            await merged.write(rewritten)
            merged.first_choice_started.set()

    def _rewrite_event(self, event: bytes) -> bytes | None:
        """The event with the merged response's id and this choice's index; None for usage and
        ``[DONE]``, which the merged response sends once, at its end."""
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
    """The engine refused a choice, and its reply was sent as the whole response."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status
