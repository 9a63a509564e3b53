"""Turns a chat request into the steps of its stream, faults included."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum, auto
from itertools import pairwise
from typing import Any

from benchmarks.standin import vocabulary as v
from benchmarks.standin import wire_format as wire
from benchmarks.standin.chat import ChatRequest, make_delta
from benchmarks.standin.scenario import Scenario

__all__ = ["Fault", "Step", "stream_steps"]


class Fault(Enum):
    """What goes wrong in a stream: the connection is dropped, or nothing more is sent."""

    DROP = auto()
    STALL = auto()


Step = bytes | list[bytes] | Fault
"""Bytes to write at once, framed as HTTP chunks; parts to write separately; or a fault.
The last step of a stream without a fault ends in `wire.LAST_HTTP_CHUNK`."""


def stream_steps(chat: ChatRequest, model: str) -> Iterator[Step]:
    """The steps of this request's stream, to be written one by one."""
    return _ChatStream(chat, model).steps()


class _ChatStream:
    """One stream: the options of the request, and the tokens sent so far.

    State, changed only by `steps`: whether the trace is open, and the counts of tokens.
    """

    def __init__(self, chat: ChatRequest, model: str) -> None:
        body = chat.body
        options = body.get("stream_options") or {}
        self._chat = chat
        self._scenario = chat.scenario
        self._rng = random.Random(chat.scenario.seed)
        self._include_reasoning = body.get("include_reasoning", True) is not False
        self._final_usage = bool(options.get("include_usage"))
        self._continuous_usage = chat.scenario.usage_each or (
            self._final_usage and bool(options.get("continuous_usage_stats"))
        )
        ids = bool(body.get("return_token_ids"))
        top = int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
        self._events = wire.ChatEvents(chat.response_id, model)
        self._prompt_ids = chat.prompt_ids if ids else None
        # vLLM omits the ids of all chunks if the reasoning is not included.
        self._include_ids = ids and self._include_reasoning
        self._top_logprobs = top if self._include_reasoning else None
        self._in_trace = chat.starts_in_trace
        self._output_tokens = self._reasoning_tokens = 0

    def steps(self) -> Iterator[Step]:
        yield self._frame(self._events.render_role(self._prompt_ids, self._usage_so_far()))
        chunks = list(self._chat.chunks())
        last = len(chunks) - 1
        comments = self._scenario.comments
        framed: dict[tuple[int, ...], Step] = {}  # steps by token ids: the same words recur
        for number, token_ids in enumerate(chunks):
            if (fault := self._due_fault()) is not None:
                yield fault
                return
            comment = [b": keep-alive\n\n"] if comments and number % comments == 0 else []
            if number == last:
                yield self._frame(*comment, *self._final_events(token_ids), wire.LAST_HTTP_CHUNK)
            elif comment or self._continuous_usage or v.END_THINK in token_ids:
                yield self._frame(*comment, self._chunk_event(token_ids))
                framed.clear()
            elif token_ids in framed:
                self._output_tokens += len(token_ids)
                self._reasoning_tokens += len(token_ids) if self._in_trace else 0
                yield framed[token_ids]
            else:
                step = framed[token_ids] = self._frame(self._chunk_event(token_ids))
                yield step

    def _chunk_event(self, token_ids: tuple[int, ...], finish: str | None = None) -> bytes:
        delta, self._in_trace, reasoning_tokens = make_delta(
            token_ids, in_trace=self._in_trace, include_reasoning=self._include_reasoning
        )
        self._output_tokens += len(token_ids)
        self._reasoning_tokens += reasoning_tokens
        if not delta and finish is None and not self._include_ids and self._top_logprobs is None:
            return b""  # vLLM sends no empty delta, unless it has ids or log-probabilities
        return self._events.render_delta(
            delta,
            list(token_ids) if self._include_ids else None,
            None
            if self._top_logprobs is None
            else wire.chat_logprobs(list(token_ids), self._top_logprobs),
            finish,
            self._usage_so_far(),
            is_last=finish is not None and not self._final_usage,
        )

    def _final_events(self, token_ids: tuple[int, ...]) -> Iterator[bytes]:
        yield self._chunk_event(token_ids, self._chat.finish_reason)
        if self._final_usage:
            yield self._events.render_usage(
                self._chat.usage(self._output_tokens, self._reasoning_tokens, with_nulls=False)
            )
        if not self._scenario.no_done:
            yield wire.DONE

    def _usage_so_far(self) -> dict[str, Any] | None:
        if not self._continuous_usage:
            return None
        return self._chat.usage(
            self._output_tokens, self._reasoning_tokens, with_nulls=False, with_cached=False
        )

    def _due_fault(self) -> Step | None:
        def due(after: int | None) -> bool:
            return after is not None and self._output_tokens >= after

        if due(self._scenario.die_after):
            return Fault.DROP
        if due(self._scenario.stall_after):
            return Fault.STALL
        if due(self._scenario.error_event_after):
            error = self._events.render_error(500, "Internal server error")
            return self._frame(error, wire.DONE, wire.LAST_HTTP_CHUNK)
        return None

    def _frame(self, *events: bytes) -> Step:
        """One HTTP chunk per event; or parts of all events, if the scenario splits writes."""
        scenario = self._scenario
        is_last = events[-1] is wire.LAST_HTTP_CHUNK
        sent = [event for event in events[: len(events) - is_last] if event]
        if scenario.crlf:
            sent = [event.replace(b"\n", b"\r\n") for event in sent]
        tail = wire.LAST_HTTP_CHUNK if is_last else b""
        if not (scenario.tiny_writes or scenario.split_utf8):
            return b"".join([wire.http_chunk(event) for event in sent]) + tail
        parts = [
            wire.http_chunk(part) for part in _split_bytes(b"".join(sent), scenario, self._rng)
        ]
        return [*parts, tail] if is_last else parts


def _split_bytes(data: bytes, scenario: Scenario, rng: random.Random) -> list[bytes]:
    edges = {0, len(data)}
    if scenario.split_utf8:
        edges |= {at + 1 for at, byte in enumerate(data) if byte >= 0xC0}
    at = 0
    while scenario.tiny_writes and at < len(data):
        edges.add(at)
        at += rng.randint(1, 40)
    return [data[start:end] for start, end in pairwise(sorted(edges))]
