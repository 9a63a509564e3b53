"""Carry one judged chat response from the engine to the client.

The relay drives a ``Session``: it reads the main stream, shows each chunk to the session and sends
on what the session has released, byte for byte. It runs probes beside the stream and, at a cut,
opens the answer first and gives the main stream up only when that answer has begun: until then
everything can go on as if there were no gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import httpx
import msgspec
from msgspec import Raw

from policies.events import ProbeResult
from policies.session import Ask, Cut, Order, Reopen, Said, Session
from server.choose import ChatRequest
from server.engine import TRANSPORT_ERRORS, BadReply, Engine
from server.errors import GatewayError, broken_off
from server.metrics import Metrics
from server.sse import EventSplitter, data_of
from server.wire import (
    Choice,
    Chunk,
    Renamer,
    decode_chunk,
    event_of,
    given,
    hide_ids,
    is_padding,
    most_probable,
    spoken,
    with_bias,
    with_key,
    with_logprobs,
    without_reasoning,
)

__all__ = ["Relay", "Sink"]

log = logging.getLogger("adjourn.relay")

_DONE = b"[DONE]"
_PATH = "/v1/chat/completions"
Headers = Sequence[tuple[bytes, bytes]]


class Sink(Protocol):
    """Where a response goes: a client's stream, or an assembler for a client that wants none."""

    began: bool

    def open(self, response: httpx.Response) -> None:
        """The engine has begun to answer."""

    async def hand_through(self, response: httpx.Response) -> None:
        """The engine refused: its status, headers and body, unmodified."""

    async def write(self, events: list[bytes]) -> None: ...

    async def end(self, note: dict[str, Any] | None) -> None: ...

    async def fail(self, error: GatewayError) -> None:
        """The response cannot be finished. What was sent already must not look finished."""


@dataclass(slots=True)
class Times:
    """Seconds on the monotonic clock; 0.0 until it happened."""

    arrived: float
    sent: float = 0.0
    first_read: float = 0.0
    first_write: float = 0.0
    triggered: float = 0.0
    resumed: float = 0.0


class Relay:
    """``run`` carries the response. Raises GatewayError only while nothing was written."""

    def __init__(
        self,
        engine: Engine,
        request: ChatRequest,
        headers: Headers,
        request_id: str,
        session: Session,
        sink: Sink,
        metrics: Metrics,
        labels: tuple[str, str],
        arrived: float,
    ) -> None:
        self.session = session
        self.times = Times(arrived)
        self.status = 200
        self.probe_seconds: list[float] = []
        self._engine = engine
        self._request = request
        self._headers = headers
        self._request_id = request_id
        self._sink = sink
        self._metrics = metrics
        self._labels = labels
        self._logprobs = session.policy.needs.logprobs
        self._asked_logprobs = _asked_logprobs(request.fields)
        self._bias = session.bias
        self._fields = self._main_fields()
        self._first = Chunk()
        self._pieces = 0
        self._pending: deque[tuple[int, bytes]] = deque()
        self._sending = asyncio.Lock()
        self._hide_ids = not request.return_token_ids
        self._main: httpx.Response | None = None
        self._answer: _Behind | None = None
        self._reopened: _Behind | None = None
        self._rename: Renamer | None = None
        self._streams = 0
        self._pump: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()
        self._broken: str | None = None
        self._finished = False
        self._done = False
        self._note_on_usage = request.include_usage or not request.stream

    # -- the life of a response --------------------------------------------------------------

    async def run(self) -> None:
        try:
            self._main = await self._open(self._fields, self._request_id)
            if self._main.status_code != 200:
                self.status = self._main.status_code
                await self._sink.hand_through(self._main)
                return
            self._sink.open(self._main)
            await self._follow()
            await self._end()
        finally:
            await self._close()

    async def _follow(self) -> None:
        assert self._main is not None
        reads = self._main.stream.__aiter__()  # type: ignore[union-attr]
        await self._pumped(_Behind(self._main, reads, EventSplitter(), [], None))
        while self._answer is None and self._reopened is not None:
            behind, self._reopened = self._reopened, None
            self._metrics.aborts.labels("reopened").inc()
            await self._main.aclose()
            self._main, self._rename = behind.response, behind.rename
            await self._pumped(behind)
        if self._answer is not None:
            self._metrics.aborts.labels("cut").inc()
            await self._main.aclose()
            await self._pump_answer(self._answer)

    async def _pumped(self, main: _Behind) -> None:
        """Until the main stream ends, or is given up for another."""
        self._pump = asyncio.ensure_future(self._pump_main(main))
        try:
            await self._pump
        except asyncio.CancelledError:
            task = asyncio.current_task()
            given_up = self._answer is not None or self._reopened is not None
            if not given_up or (task is not None and task.cancelling()):
                raise
        while self._beside and self.session.waiting:
            # The main stream ended while another was being opened.
            await asyncio.wait(self._beside, return_when=asyncio.FIRST_COMPLETED)

    async def _end(self) -> None:
        self.session.ended()
        await self._flush()
        if self._broken is None and not self._finished:
            self._broken = "truncated"
        if self._broken is not None:
            error = broken_off(self._broken)
            self.status = error.status
            if not self._sink.began:
                raise error  # who answers with it counts it
            self._metrics.upstream_errors.labels(self._broken).inc()
            await self._sink.fail(error)
            return
        if not self._done:
            self._pending.append((0, event_of(_DONE)))
            await self._flush()
        await self._sink.end(self._note() if self._telling else None)

    async def _close(self) -> None:
        tasks = [task for task in (*self._beside, self._pump) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        behind = [each.response for each in (self._answer, self._reopened) if each is not None]
        for response in (self._main, *behind):
            if response is not None:
                with contextlib.suppress(*TRANSPORT_ERRORS):
                    await response.aclose()

    # -- upstream requests ---------------------------------------------------------------------

    def _main_fields(self) -> dict[str, Raw]:
        fields = dict(self._request.fields)
        fields["stream"] = fields["return_token_ids"] = fields["include_reasoning"] = Raw(b"true")
        if not self._request.stream:
            fields["stream_options"] = Raw(b'{"include_usage":true}')
        if self._logprobs:
            fields["logprobs"] = Raw(b"true")
            wanted = max(self._logprobs, self._asked_logprobs or 0)
            fields["top_logprobs"] = Raw(b"%d" % wanted)
        if self._bias:
            ours = self._request.fields.get("logit_bias", Raw(b"{}"))
            fields["logit_bias"] = with_bias(ours, self.session.marks.end[0], self._bias)
        return fields

    async def _open(self, fields: dict[str, Raw], request_id: str) -> httpx.Response:
        headers = [
            *(header for header in self._headers if header[0] != b"accept-encoding"),
            (b"accept-encoding", b"identity"),  # it is read here
            (b"x-request-id", request_id.encode()),
        ]
        body = msgspec.json.encode(fields)
        if not self.times.sent:
            self.times.sent = time.perf_counter()
        return await self._engine.send("POST", _PATH, headers, body)

    # -- the main stream -----------------------------------------------------------------------

    async def _pump_main(self, main: _Behind) -> None:
        splitter, take, flush = main.splitter, self._take, self._flush
        for event in main.events:
            take(event, time.perf_counter())
        try:
            async for data in main.reads:
                now = time.perf_counter()
                if not self.times.first_read:
                    self.times.first_read = now
                for event in splitter.feed(data):
                    take(event, now)
                await flush()
        except httpx.ReadTimeout:
            self._broken = "timeout"
        except TRANSPORT_ERRORS:
            self._broken = "broken"
        if splitter.rest.strip():
            take(splitter.rest, time.perf_counter())
            await flush()

    def _take(self, event: bytes, at: float) -> None:
        """One event of the main stream: show it to the session, queue what the client gets."""
        data = data_of(event)
        chunk = None if data is None or data == _DONE else self._decode(data)
        if data is None or chunk is None:
            self._done = self._done or data == _DONE
            self._pending.append((self._pieces, event))
            return
        if self._pieces == 0:
            self._first = chunk
        if self._rename is not None:
            event = self._reopened_event(event, chunk)
        if chunk.prompt_token_ids is not None and not self.session.prompt:
            self.session.opened(chunk.prompt_token_ids)
        command = None
        if chunk.choices:
            choice = chunk.choices[0]
            delta = choice.delta
            self._pieces += 1
            command = self.session.feed(
                delta.thought,
                choice.token_ids or (),
                at,
                answering=bool(delta.content) or given(delta.tool_calls),
                ending=choice.finish_reason,
                logprobs=_told(choice) if self._logprobs else (),
            )
            self._finished = self._finished or choice.finish_reason is not None
        elif given(chunk.error):
            self._finished = True
        edited = self._edited(event, data, chunk)
        if edited is not None:
            self._pending.append((self._pieces, edited))
        if command is not None:
            self.times.triggered = at
            task = asyncio.ensure_future(self._carry_out(command))
            self._beside.add(task)
            task.add_done_callback(self._beside.discard)

    def _reopened_event(self, event: bytes, chunk: Chunk) -> bytes:
        """An event of a trace that was reopened, as one of the response that it goes on with."""
        assert self._rename is not None
        event = self._rename(event)
        if chunk.usage is not None:
            event = event_of(self._with_usage(data_of(event) or b"{}"))
        return event

    def _decode(self, data: bytes) -> Chunk | None:
        try:
            return decode_chunk(data)
        except msgspec.MsgspecError:
            self._fail_open("unreadable-chunk")
            return None

    def _edited(self, event: bytes, data: bytes, chunk: Chunk) -> bytes | None:
        """The event as the client is to get it; None where it gets none."""
        choice = chunk.choices[0] if chunk.choices else None
        if self._logprobs and choice is not None and given(choice.logprobs):
            event = with_logprobs(event, choice, self._asked_logprobs)
        if self._hide_ids:
            if choice is not None and choice.token_ids is not None:
                if is_padding(event, choice):
                    return None
                event = hide_ids(event)
            if chunk.prompt_token_ids is not None:
                event = hide_ids(event, b'"prompt_token_ids":[')
        if not self._request.include_reasoning and choice is not None:
            shown = without_reasoning(data_of(event) or b"")
            if shown is None:
                return None
            event = event_of(shown)
        if self._is_last(choice, chunk) and self._telling:
            event = event_of(with_key(data_of(event) or b"{}", "adjourn", self._note()))
        return event

    def _is_last(self, choice: Choice | None, chunk: Chunk) -> bool:
        if self._note_on_usage:
            return choice is None and chunk.usage is not None
        return choice is not None and choice.finish_reason is not None

    async def _flush(self) -> None:
        """Send what is released, in order; who comes while another sends waits for the rest."""
        if not self._ready():
            return
        async with self._sending:
            while count := self._ready():
                if not self.times.first_write:
                    self.times.first_write = time.perf_counter()
                await self._sink.write([event for _, event in islice(self._pending, count)])
                # Only now: a write that was cancelled while it waited has written nothing.
                for _ in range(count):
                    self._pending.popleft()

    def _ready(self) -> int:
        """How many of the pending events the session has released."""
        released, count = self.session.released, 0
        for number, _ in self._pending:
            if number > released:
                break
            count += 1
        return count

    # -- beside the stream -----------------------------------------------------------------------

    async def _carry_out(self, command: Order | None) -> None:
        try:
            while command is not None:
                match command:
                    case Ask():
                        command = await self._probe(command)
                    case Reopen():
                        command = await self._reopen(command)
                    case Cut():
                        await self._resume(command)
                        command = None
        except _Refused as refused:
            self._fail_open(refused.reason)
            self.session.refused(refused.reason)
        except Exception as error:
            # A fault of ours must not become the client's.
            log.exception("beside the stream: %s", type(error).__name__)
            self._fail_open("internal-error")
            self.session.give_up("internal-error")
        await self._flush()

    async def _probe(self, ask: Ask) -> Order | None:
        session, began = self.session, time.perf_counter()
        inducer = session.marks.inducers.get(ask.probe.inducer) if ask.probe.inducer else ()
        prompt = [*session.prompt, *session.generated[: ask.kept], *ask.closing, *(inducer or ())]
        outcome = "ok"
        try:
            if inducer is None:
                raise BadReply(f"the dialect has no inducer {ask.probe.inducer!r}")
            async with asyncio.timeout(self._engine.settings.probe_timeout):
                drawn = await self._engine.probe(
                    self._request.model,
                    prompt,
                    ask.probe,
                    self._headers,
                    self._sticky,
                    ask.ending,
                )
        except TimeoutError:
            outcome = "timeout"
        except BadReply:
            outcome = "bad-reply"
        except GatewayError:
            outcome = "error"
        now = time.perf_counter()
        self._metrics.probes.labels(*self._labels, outcome).inc()
        if outcome != "ok":
            self._metrics.fail_open.labels(self._labels[1], f"probe-{outcome}").inc()
            return session.probe_failed(outcome, ask, now)
        self._metrics.probe_seconds.labels(*self._labels).observe(now - began)
        result = ProbeResult(
            probe=ask.probe,
            position=ask.position,
            text=drawn.text,
            tokens=drawn.tokens,
            logprobs=drawn.logprobs,
            finished=drawn.finished,
            seconds=now - began,
            at=now,
            top=drawn.top,
            ending=drawn.ending,
        )
        command = session.probed(result, prefilled=drawn.prefilled, decoded=drawn.decoded)
        if isinstance(command, Cut):
            self.times.triggered = now
        return command

    @property
    def _sticky(self) -> dict[str, Raw]:
        """What must be the same on all calls of a request, or the prefix cache is missed."""
        return {k: v for k, v in self._request.fields.items() if k in ("cache_salt", "priority")}

    async def _resume(self, cut: Cut) -> None:
        """Open the answer from the kept prefix; only then is the main stream given up."""
        fields = dict(self._fields)
        for name in ("logprobs", "top_logprobs", "logit_bias"):  # the answer is the client's
            fields.pop(name, None)
            if name in self._request.fields:
                fields[name] = self._request.fields[name]
        answer = await self._open_behind(cut.kept, [*cut.said.ids, *cut.closing], fields, "answer")
        self.session.resumed()
        self._drop_behind(self.session.released)
        self._say(cut.said)
        self._answer = answer
        self.times.resumed = time.perf_counter()

    async def _reopen(self, reopen: Reopen) -> Order | None:
        """Go on with the trace that the model would have ended."""
        said = reopen.said
        if reopen.bias is not None:
            self._bias = reopen.bias
            self._fields = self._main_fields()
        self._streams += 1
        label = f"more-{self._streams}"
        behind = await self._open_behind(reopen.kept, said.ids, dict(self._fields), label)
        command = self.session.reopened(time.perf_counter())
        self._drop_behind(reopen.pieces)
        self._pieces = reopen.pieces + 1  # the text that was put in is one
        self._say(said)
        self._reopened = behind
        return command

    async def _open_behind(
        self, kept: int, ids: Sequence[int], fields: dict[str, Raw], label: str
    ) -> _Behind:
        """Open a stream from the first ``kept`` generated ids and these. Raises _Refused."""
        session = self.session
        prompt = [*session.prompt, *session.generated[:kept], *ids]
        fields["kv_transfer_params"] = Raw(msgspec.json.encode({"prompt_token_ids": prompt}))
        if not self._limit(fields, kept + len(ids)):
            raise _Refused("no-token-left")
        response = behind = None
        try:
            async with asyncio.timeout(self._engine.settings.resume_timeout):
                response = await self._open(fields, f"{self._request_id}-{label}")
                behind = await self._begin(response, prompt)
        except (TimeoutError, GatewayError, *TRANSPORT_ERRORS):
            raise _Refused("resume-failed") from None
        finally:
            if behind is None and response is not None:
                await response.aclose()
        if behind is None:
            taken = response.status_code == 200
            raise _Refused("ids-not-honoured" if taken else "resume-rejected")
        return behind

    def _limit(self, fields: dict[str, Raw], spent: int) -> bool:
        """Take what was spent from the client's own limit; whether anything is left."""
        if self._request.limit is None:
            return True
        left = self._request.limit - spent
        for name in ("max_completion_tokens", "max_tokens"):
            if name in fields:
                fields[name] = Raw(b"%d" % left)
        return left > 0

    def _drop_behind(self, pieces: int) -> None:
        """The main stream is given up: what it brought behind these pieces is nobody's; what the
        session released may still be on its way."""
        while self._pending and self._pending[-1][0] > pieces:
            self._pending.pop()
        self._finished = self._done = False
        self._broken = None
        if self._pump is not None:
            self._pump.cancel()

    def _say(self, said: Said) -> None:
        """Show the client what was put into the trace, as the piece that it is."""
        if not said.ids or not self._request.include_reasoning:
            return
        ids = said.ids if self._request.return_token_ids else None
        event = event_of(spoken(self._first, self._request.model, said.text, ids))
        self._pending.append((0 if self.session.stopped else self._pieces, event))

    async def _begin(self, response: httpx.Response, prompt: list[int]) -> _Behind | None:
        """Read up to the first chunk, which tells whether the engine took our ids."""
        if response.status_code != 200:
            return None
        splitter = EventSplitter()
        reads = response.stream.__aiter__()  # type: ignore[union-attr]
        async for data in reads:
            events = splitter.feed(data)
            for index, event in enumerate(events):
                content = data_of(event)
                chunk = self._decode(content) if content not in (None, _DONE) else None
                if chunk is None:
                    continue
                if chunk.prompt_token_ids != prompt:
                    return None
                return _Behind(
                    response, reads, splitter, events[index + 1 :], Renamer(self._first, chunk)
                )
        return None

    def _fail_open(self, reason: str) -> None:
        self._metrics.fail_open.labels(self._labels[1], reason).inc()
        self.session.mute(reason)

    # -- the answer behind a cut -----------------------------------------------------------------

    async def _pump_answer(self, answer: _Behind) -> None:
        await self._send_answer(answer, answer.events)
        try:
            async for data in answer.reads:
                await self._send_answer(answer, answer.splitter.feed(data))
        except httpx.ReadTimeout:
            self._broken = "timeout"
        except TRANSPORT_ERRORS:
            self._broken = "broken"
        if answer.splitter.rest.strip():
            await self._send_answer(answer, [answer.splitter.rest])

    async def _send_answer(self, answer: _Behind, events: list[bytes]) -> None:
        for event in events:
            if (shown := self._take_answer(answer, event)) is not None:
                self._pending.append((0, shown))
        await self._flush()

    def _take_answer(self, answer: _Behind, event: bytes) -> bytes | None:
        data = data_of(event)
        chunk = None if data is None or data == _DONE else self._decode(data)
        if data is None or chunk is None:
            self._done = self._done or data == _DONE
            return event
        self._finished = self._finished or given(chunk.error)
        assert answer.rename is not None
        event = answer.rename(event)
        for choice in chunk.choices:
            self.session.answered(len(choice.token_ids or ()))
            self._finished = self._finished or choice.finish_reason is not None
            if self._request.return_token_ids and answer.closing_due:
                event = self._with_closing(event)
                answer.closing_due = False
        if chunk.usage is not None:
            event = event_of(self._with_usage(data_of(event) or b"{}"))
        return self._edited(event, data, chunk)

    def _with_closing(self, event: bytes) -> bytes:
        """A client that asked for ids gets those of the closing sequence with the first answer."""
        chunk = msgspec.json.decode(data_of(event) or b"{}")
        choice = chunk["choices"][0]
        choice["token_ids"] = [*self.session.closing, *(choice.get("token_ids") or ())]
        return event_of(msgspec.json.encode(chunk))

    def _with_usage(self, data: bytes) -> bytes:
        """One usage for the whole response: the prompt once, and all that the client got."""
        chunk = msgspec.json.decode(data)
        usage, ledger = chunk["usage"], self.session.ledger
        usage["prompt_tokens"] = ledger.prompt
        usage["completion_tokens"] = ledger.completion
        usage["total_tokens"] = ledger.prompt + ledger.completion
        if isinstance(details := usage.get("completion_tokens_details"), dict):
            details["reasoning_tokens"] = ledger.reasoning
        if isinstance(details := usage.get("prompt_tokens_details"), dict):
            details["cached_tokens"] = min(details.get("cached_tokens") or 0, ledger.prompt)
        return msgspec.json.encode(chunk)

    # -- what was done -----------------------------------------------------------------------------

    @property
    def _telling(self) -> bool:
        session = self.session
        return self._request.explicit or session.trigger is not None or session.extended > 0

    def _note(self) -> dict[str, Any]:
        session, ledger = self.session, self.session.ledger
        note: dict[str, Any] = {"stopped": session.stopped, "policy": session.policy.name}
        if (trigger := session.trigger) is not None:
            note["reason"] = trigger.stop.reason
            note["action"] = trigger.action
            if trigger.stop.confidence is not None:
                note["confidence"] = round(trigger.stop.confidence, 6)
            note["position"] = trigger.position
        if session.muted is not None:
            note["muted"] = session.muted
        if session.extended:
            note["extended"] = session.extended
        note["probes"] = session.probes
        note["tokens"] = {
            kind: getattr(ledger, kind)
            for kind in ("prompt", "reasoning", "answer", "marker", "closing", "probe", "wasted")
        }
        return note


def _asked_logprobs(fields: dict[str, Raw]) -> int | None:
    """How many log-probabilities a token the client itself asked for; None for none at all."""
    if bytes(fields.get("logprobs", b"null")) != b"true":
        return None
    top = bytes(fields.get("top_logprobs", b"0"))
    return int(top) if top.isdigit() else 0


def _told(choice: Choice) -> list[list[float]]:
    """What a policy is shown of a chunk's log-probabilities: one list a token, or none at all."""
    try:
        told = most_probable(choice.logprobs)
    except msgspec.MsgspecError:
        return []
    return told if len(told) == len(choice.token_ids or ()) else []


class _Refused(Exception):
    """The engine would not open a stream from a kept prefix."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Behind:
    """A stream, most often one behind a kept prefix: ``events`` were read with its first chunk, and
    ``rename`` makes them the response's own."""

    response: httpx.Response
    reads: AsyncIterator[bytes]
    splitter: EventSplitter
    events: list[bytes]
    rename: Renamer | None
    closing_due: bool = True
