"""The chunks of a chat stream, one step after the other, and the faults among them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum, auto
from itertools import pairwise
from typing import Any

from benchmarks.standin import vocabulary as v
from benchmarks.standin import wire
from benchmarks.standin.chat import Chat, delta_of
from benchmarks.standin.scenario import Scenario

__all__ = ["Fault", "Step", "steps"]


class Fault(Enum):
    DIE = auto()
    STALL = auto()


Step = bytes | list[bytes] | Fault
"""What to write at once, framed for HTTP; what to write piece by piece; or what goes wrong.
The last of a stream that ends well ends in `wire.LAST_CHUNK`."""


def steps(chat: Chat, model: str) -> Iterator[Step]:
    return _Telling(chat, model).steps()


class _Telling:
    """One stream as it is told: what is asked of its form, and how far it has come."""

    def __init__(self, chat: Chat, model: str) -> None:
        body = chat.body
        options = body.get("stream_options") or {}
        self._chat = chat
        self._scenario = chat.scenario
        self._rng = random.Random(chat.scenario.seed)
        self._shown = body.get("include_reasoning", True) is not False
        self._usage_at_end = bool(options.get("include_usage"))
        self._usage_each = chat.scenario.usage_each or (
            self._usage_at_end and bool(options.get("continuous_usage_stats"))
        )
        ids = bool(body.get("return_token_ids"))
        top = int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
        self._events = wire.ChatEvents(chat.name, model)
        self._prompt = chat.prompt if ids else None
        self._ids = ids and self._shown  # hidden reasoning hides the ids of all chunks
        self._top = top if self._shown else None
        self._thinking = chat.thinking
        self._said = self._reasoned = 0

    def steps(self) -> Iterator[Step]:
        yield self._pack(self._events.role(self._prompt, self._used()))
        groups = list(self._chat.groups())
        last = len(groups) - 1
        comments = self._scenario.comments
        packed: dict[tuple[int, ...], Step] = {}  # the same words come again and again
        for number, group in enumerate(groups):
            if (fault := self._fault()) is not None:
                yield fault
                return
            comment = [b": keep-alive\n\n"] if comments and number % comments == 0 else []
            if number == last:
                yield self._pack(*comment, *self._ending(group), wire.LAST_CHUNK)
            elif comment or self._usage_each or v.END_THINK in group:
                yield self._pack(*comment, self._event(group))
                packed.clear()
            elif group in packed:
                self._said += len(group)
                self._reasoned += len(group) if self._thinking else 0
                yield packed[group]
            else:
                step = packed[group] = self._pack(self._event(group))
                yield step

    def _event(self, group: tuple[int, ...], finish: str | None = None) -> bytes:
        delta, self._thinking, thoughts = delta_of(
            group, thinking=self._thinking, shown=self._shown
        )
        self._said += len(group)
        self._reasoned += thoughts
        if not delta and finish is None and not self._ids and self._top is None:
            return b""  # vLLM sends no chunk without text, unless ids or log-probabilities are due
        return self._events.delta(
            delta,
            list(group) if self._ids else None,
            None if self._top is None else wire.chat_logprobs(list(group), self._top),
            finish,
            self._used(),
            last=finish is not None and not self._usage_at_end,
        )

    def _ending(self, group: tuple[int, ...]) -> Iterator[bytes]:
        yield self._event(group, self._chat.finish)
        if self._usage_at_end:
            yield self._events.usage(self._chat.used(self._said, self._reasoned, nulls=False))
        if not self._scenario.no_done:
            yield wire.DONE

    def _used(self) -> dict[str, Any] | None:
        if not self._usage_each:
            return None
        return self._chat.used(self._said, self._reasoned, nulls=False, cached=False)

    def _fault(self) -> Step | None:
        def due(after: int | None) -> bool:
            return after is not None and self._said >= after

        if due(self._scenario.die_after):
            return Fault.DIE
        if due(self._scenario.stall_after):
            return Fault.STALL
        if due(self._scenario.error_event_after):
            error = self._events.error(500, "Internal server error")
            return self._pack(error, wire.DONE, wire.LAST_CHUNK)
        return None

    def _pack(self, *events: bytes) -> Step:
        """Events as chunks of HTTP, each its own; or all of them cut anew."""
        scenario = self._scenario
        end = events[-1] is wire.LAST_CHUNK
        told = [event for event in events[: len(events) - end] if event]
        if scenario.crlf:
            told = [event.replace(b"\n", b"\r\n") for event in told]
        tail = wire.LAST_CHUNK if end else b""
        if not (scenario.tiny_writes or scenario.split_utf8):
            return b"".join([wire.chunk(event) for event in told]) + tail
        pieces = [wire.chunk(piece) for piece in _cut(b"".join(told), scenario, self._rng)]
        return [*pieces, tail] if end else pieces


def _cut(data: bytes, scenario: Scenario, rng: random.Random) -> list[bytes]:
    edges = {0, len(data)}
    if scenario.split_utf8:
        edges |= {at + 1 for at, byte in enumerate(data) if byte >= 0xC0}
    at = 0
    while scenario.tiny_writes and at < len(data):
        edges.add(at)
        at += rng.randint(1, 40)
    return [data[start:end] for start, end in pairwise(sorted(edges))]
