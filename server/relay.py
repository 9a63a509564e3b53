"""Carry one judged choice of a response from the engine to the client.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import msgspec

from policies.events import ProbeResult
from policies.session import Ask, Cut, Session
from server.answer import Answer
from server.engine import TRANSPORT_ERRORS, BadReply, Engine
from server.errors import GatewayError, broken_off
from server.metrics import Metrics
from server.sse import EventSplitter, data_of
from server.surface import Fields, Surface
from server.wire import Choice, Chunk, event_of, given, with_key

__all__ = ["Relay", "Sink"]

log = logging.getLogger("adjourn.relay")

_DONE = b"[DONE]"
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
        surface: Surface,
        headers: Headers,
        request_id: str,
        session: Session,
        sink: Sink,
        metrics: Metrics,
        labels: tuple[str, str],
        explicit: bool,
        arrived: float,
    ) -> None:
        self.session = session
        self.times = Times(arrived)
        self.status = 200
        self.probe_seconds: list[float] = []
        self._engine = engine
        self._surface = surface
        self._headers = headers
        self._request_id = request_id
        self._sink = sink
        self._metrics = metrics
        self._labels = labels
        self._model, _ = labels
        self._explicit = explicit
        self._first = Chunk()
        self._pieces = 0
        self._pending: deque[tuple[int, bytes, Chunk | None]] = deque()  # not released
        self._outgoing: list[bytes] = []  # released, as the client is to get it
        self._sending = asyncio.Lock()
        self._main: httpx.Response | None = None
        self._answer: Answer | None = None
        self._drawn = 0
        self._escaped = False
        self._pump: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[None]] = set()
        self._broken: str | None = None
        self._finished = False
        self._done = False

    # -- the life of a response --------------------------------------------------------------

    async def run(self) -> None:
        try:
            self._main = await self._open(self._surface.fields, self._request_id)
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
        self._pump = asyncio.ensure_future(self._pump_main(self._main))
        try:
            await self._pump
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._answer is None or (task is not None and task.cancelling()):
                raise
        while self._beside and self.session.waiting:
            # The main stream ended while a cut was being carried out.
            await asyncio.wait(self._beside, return_when=asyncio.FIRST_COMPLETED)
        if self._answer is not None:
            if self._pump.cancelled():
                self._metrics.aborts.labels("cut").inc()
            await self._main.aclose()
            await self._pump_answer()

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
            self._pending.append((0, event_of(_DONE), None))
            await self._flush()
        await self._sink.end(self._note() if self._telling else None)

    async def _close(self) -> None:
        tasks = [task for task in (*self._beside, self._pump) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for response in (self._main, self._answer.response if self._answer else None):
            if response is not None:
                with contextlib.suppress(*TRANSPORT_ERRORS):
                    await response.aclose()

    # -- upstream requests ---------------------------------------------------------------------

    async def _open(self, fields: Fields, request_id: str) -> httpx.Response:
        headers = [
            *(header for header in self._headers if header[0] != b"accept-encoding"),
            (b"accept-encoding", b"identity"),  # it is read here
            (b"x-request-id", request_id.encode()),
        ]
        body = msgspec.json.encode(fields)
        if not self.times.sent:
            self.times.sent = time.perf_counter()
        return await self._engine.send("POST", self._surface.path, headers, body)

    # -- the main stream -----------------------------------------------------------------------

    async def _pump_main(self, response: httpx.Response) -> None:
        splitter = EventSplitter()
        take, flush = self._take, self._flush
        try:
            async for data in response.stream:  # type: ignore[union-attr]
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
        """One event of the main stream: show it to the session, queue it for the client."""
        data = data_of(event)
        chunk = None if data is None or data == _DONE else self._decode(data)
        if data is None or chunk is None:
            self._done = self._done or data == _DONE
            self._pending.append((self._pieces, event, None))
            return
        if self._pieces == 0:
            self._first = chunk
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
                answering=self._surface.answers(choice),
                ending=choice.finish_reason,
            )
            self._finished = self._finished or choice.finish_reason is not None
        elif given(chunk.error):
            self._finished = True
        self._pending.append((self._pieces, event, chunk))
        if command is not None:
            self.times.triggered = at
            task = asyncio.ensure_future(self._carry_out(command))
            self._beside.add(task)
            task.add_done_callback(self._beside.discard)

    def _decode(self, data: bytes) -> Chunk | None:
        try:
            return self._surface.decode(data)
        except msgspec.MsgspecError:
            self._fail_open("unreadable-chunk")
            return None

    def _edited(self, event: bytes, chunk: Chunk) -> bytes | None:
        """The event as the client is to get it; None where it gets none."""
        shown = self._surface.shown(event, chunk)
        if shown is None or not self._telling:
            return shown
        choice = chunk.choices[0] if chunk.choices else None
        if self._surface.is_last(chunk, choice):
            return event_of(with_key(data_of(shown) or b"{}", "adjourn", self._note()))
        return shown

    async def _flush(self) -> None:
        """Send what is released, in order; who comes while another sends waits for the rest."""
        self._release()
        if not self._outgoing:
            return
        async with self._sending:
            while count := len(self._outgoing):
                if not self.times.first_write:
                    self.times.first_write = time.perf_counter()
                await self._sink.write(self._outgoing[:count])
                # Only now: a write that was cancelled while it waited has written nothing.
                del self._outgoing[:count]

    def _release(self) -> None:
        released, pending = self.session.released, self._pending
        while pending and pending[0][0] <= released:
            _, event, chunk = pending.popleft()
            shown = event if chunk is None else self._edited(event, chunk)
            if shown is not None:
                self._outgoing.append(shown)

    # -- beside the stream -----------------------------------------------------------------------

    async def _carry_out(self, command: Ask | Cut | None) -> None:
        try:
            while isinstance(command, Ask):
                command = await self._probe(command)
            while command is not None:
                command = await self._resume(command)
        except Exception as error:
            # A fault of ours must not become the client's.
            log.exception("beside the stream: %s", type(error).__name__)
            self._fail_open("internal-error")
            self.session.give_up("internal-error")
        await self._flush()

    async def _probe(self, ask: Ask) -> Ask | Cut | None:
        session, began = self.session, time.perf_counter()
        inducer = session.marks.inducers.get(ask.probe.inducer)
        prompt = [*session.prompt, *session.generated[: ask.kept], *ask.closing, *(inducer or ())]
        outcome = "ok"
        try:
            if inducer is None:
                raise BadReply(f"the dialect has no inducer {ask.probe.inducer!r}")
            async with asyncio.timeout(self._engine.settings.probe_timeout):
                drawn = await self._engine.probe(
                    self._model, prompt, ask.probe, self._headers, self._surface.sticky
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
        )
        command = session.probed(result, prefilled=drawn.prefilled)
        if isinstance(command, Cut):
            self.times.triggered = now
        return command

    async def _resume(self, cut: Cut) -> Cut | None:
        """Open the answer from the kept prefix; only then is the main stream given up."""
        session = self.session
        prompt = [*session.prompt, *session.generated[: cut.kept], *cut.closing]
        left = self._left(cut)
        if left is not None and left < 1:
            return self._refuse("no-token-left")
        answer = await self._draw(prompt, left)
        if isinstance(answer, str):
            return self._refuse(answer)
        session.resumed()
        self._give_up_main(cut)
        self._answer = answer
        self.times.resumed = time.perf_counter()
        return None

    async def _draw(self, prompt: list[int], left: int | None) -> Answer | str:
        """An answer from these ids, or why there is none."""
        response = answer = None
        self._drawn += 1
        name = f"{self._request_id}-answer" + (f"-{self._drawn}" if self._drawn > 1 else "")
        try:
            async with asyncio.timeout(self._engine.settings.resume_timeout):
                response = await self._open(self._surface.answer(prompt, left), name)
                answer = await Answer.begun(response, prompt, self._surface.decode, self._first)
        except (TimeoutError, GatewayError, msgspec.MsgspecError, *TRANSPORT_ERRORS):
            return "resume-failed"
        finally:
            if answer is None and response is not None:
                await response.aclose()
        if answer is None:
            return "ids-not-honoured" if response.status_code == 200 else "resume-rejected"
        return answer

    def _left(self, cut: Cut) -> int | None:
        """Tokens that the answer may have; None where the client set no limit."""
        limit = self._surface.limit
        left = None if limit is None else limit - cut.kept - len(cut.closing)
        if cut.rescue is not None:
            return max(left or 0, self._engine.settings.rescue_tokens)
        return left

    def _give_up_main(self, cut: Cut) -> None:
        """What stands behind the cut is nobody's; what was released may still be on its way."""
        edge, released = None, self.session.released
        while self._pending and self._pending[-1][0] > released:
            number, event, chunk = self._pending.pop()
            if number == released + 1 and chunk is not None:
                edge = event  # the last that is found is the first that came
        if edge is not None and cut.edge:
            self._append(self._surface.edge(edge, cut.edge))
        self._finished = self._done = False
        self._broken = None
        if self._pump is not None:
            self._pump.cancel()

    def _refuse(self, reason: str) -> Cut | None:
        self._fail_open(reason)
        return self.session.refused(reason)

    def _fail_open(self, reason: str) -> None:
        self._metrics.fail_open.labels(self._labels[1], reason).inc()
        self.session.mute(reason)

    # -- the answer behind a cut -----------------------------------------------------------------

    async def _pump_answer(self) -> None:
        """The answer to its end, and the one that takes its place where it thinks again."""
        while (answer := self._answer) is not None:
            try:
                async for events in answer.events():
                    if await self._tell_answer(answer, events):
                        break
                else:
                    return
            except httpx.ReadTimeout:
                self._broken = "timeout"
                return
            except TRANSPORT_ERRORS:
                self._broken = "broken"
                return

    async def _tell_answer(self, answer: Answer, events: list[bytes]) -> bool:
        """Whether another answer took this one's place."""
        for event in events:
            if not self._take_answer(answer, event):
                continue
            await self._flush()
            if await self._end_escape(answer):
                return True
            self._take_answer(answer, event)
        await self._flush()
        return False

    def _take_answer(self, answer: Answer, event: bytes) -> bool:
        """One event of the answer; True, and it is not taken, where it thinks again."""
        data = data_of(event)
        chunk = None if data is None or data == _DONE else self._decode(data)
        if data is None or chunk is None:
            self._done = self._done or data == _DONE
            self._pending.append((0, event, None))
            return False
        self._finished = self._finished or given(chunk.error)
        event = answer.rename(event)
        for choice in chunk.choices:
            if self._escapes(answer, choice):
                return True
            ids = choice.token_ids or ()
            answer.ids.extend(ids)
            self.session.answered(len(ids))
            self._finished = self._finished or choice.finish_reason is not None
            if answer.closing_due:
                event = self._surface.closed(event, choice, self.session.closing)
                answer.closing_due = False
        if chunk.usage is not None:
            event = event_of(self._with_usage(data_of(event) or b"{}"))
        self._pending.append((0, event, chunk))
        return False

    def _escapes(self, answer: Answer, choice: Choice) -> bool:
        """Whether the model opens a trace again behind the one that was closed for it."""
        session = self.session
        if answer.escaped or not (session.stopped or session.rescued):
            return False
        ids = choice.token_ids or ()
        answer.escaped = session.marks.start in ids
        answer.lost = len(ids)
        return answer.escaped

    async def _end_escape(self, answer: Answer) -> bool:
        """Close that trace at once, and draw on; only the first one: a model that will think
        thinks."""
        labels, session, closing = self._labels, self.session, self.session.marks.closing
        if self._escaped or not self._engine.settings.end_escapes:
            self._metrics.escapes.labels(*labels, "left").inc()
            return False
        self._escaped = True
        marker = (session.marks.start, *closing)
        limit = self._surface.limit
        left = None if limit is None else limit - session.ledger.completion - len(marker)
        following = await self._draw([*answer.prompt, *answer.ids, *marker], left)
        if isinstance(following, str):
            self._metrics.escapes.labels(*labels, "refused").inc()
            return False
        self._metrics.escapes.labels(*labels, "ended").inc()
        self._metrics.aborts.labels("cut").inc()
        session.closed_again(marker, answer.lost)
        await answer.response.aclose()
        self._answer = following
        return True

    def _append(self, event: bytes | None) -> None:
        """An event that was made here."""
        if event is not None:
            self._pending.append((0, event, self._decode(data_of(event) or b"{}")))

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
        return self._explicit or session.trigger is not None or session.rescued is not None

    def _note(self) -> dict[str, Any]:
        session, ledger = self.session, self.session.ledger
        note: dict[str, Any] = {"stopped": session.stopped, "policy": session.policy.name}
        if (trigger := session.trigger) is not None:
            note["reason"] = trigger.stop.reason
            note["action"] = trigger.action
            if trigger.stop.confidence is not None:
                note["confidence"] = round(trigger.stop.confidence, 6)
            note["position"] = trigger.position
        if session.rescued is not None:
            note["rescued"] = session.rescued
        if session.muted is not None:
            note["muted"] = session.muted
        note["probes"] = session.probes
        note["tokens"] = {
            kind: getattr(ledger, kind)
            for kind in ("prompt", "reasoning", "answer", "marker", "closing", "probe", "wasted")
        }
        return note
