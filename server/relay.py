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
from collections.abc import Callable, Sequence
from typing import TypeVar

import httpx
import msgspec

from policies.orders import Ask, Cut, Order, Reopen, Represent, Said
from policies.session import Session
from server.account import note_of, with_usage
from server.adapters.adapter import Adapter
from server.answer import Answer
from server.continuation import Continuation
from server.engine import TRANSPORT_ERRORS, BadReply
from server.errors import GatewayError, broken_off
from server.metrics import Metrics
from server.outbox import Outbox
from server.pooling import Embedder
from server.prober import Prober
from server.sinks import Sink
from server.sse import data_of
from server.surface import Fields, Surface
from server.times import Times
from server.wire import Chunk, event_of, given

__all__ = ["Relay"]

log = logging.getLogger("adjourn.relay")

_DONE = b"[DONE]"
Headers = Sequence[tuple[bytes, bytes]]
_Stream = TypeVar("_Stream", bound=Continuation)


class Relay:
    """``run`` carries the response. Raises GatewayError only while nothing was written."""

    def __init__(
        self,
        adapter: Adapter,
        surface: Surface,
        headers: Headers,
        request_id: str,
        session: Session,
        sink: Sink,
        metrics: Metrics,
        labels: tuple[str, str],
        explicit: bool,
        arrived: float,
        embedder: Embedder | None = None,
    ) -> None:
        self.session = session
        self.times = Times(arrived)
        self.status = 200
        self._adapter = adapter
        self._engine = adapter.engine
        self._surface = surface
        self._headers = headers
        self._request_id = request_id
        self._sink = sink
        self._metrics = metrics
        self._labels = labels
        self._first = Chunk()
        self._pieces = 0
        self._outbox = Outbox(session, surface, sink, self.times, explicit)
        self._prober = Prober(adapter, headers, surface.sticky, metrics, labels, embedder)
        self._needs_logprobs = session.policy.needs.logprobs > 0
        self._main: Continuation | None = None
        self._reopened: Continuation | None = None  # takes the main stream's place
        self._rename: Callable[[bytes], bytes] | None = None  # for a main stream that was reopened
        self._answer: Answer | None = None
        self._more = 0
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
            response = await self._open(self._surface.fields, self._request_id)
            self._main = Continuation(response, [])
            if response.status_code != 200:
                self.status = response.status_code
                await self._sink.hand_through(response)
                return
            self._sink.open(response)
            if self._adapter.in_place:
                await self._ask_prompt()
            await self._follow(self._main)
            await self._end()
        finally:
            await self._close()

    @property
    def finished(self) -> bool:
        """Whether the client has the last event, though the engine's stream is not ended yet."""
        return self._done and self._outbox.empty

    async def certainty(self, answer: str) -> float | None:
        """How sure the model is, in [0, 1], that the whole answer is correct."""
        return await self._prober.certainty(self.session, answer)

    async def _follow(self, main: Continuation) -> None:
        await self._pumped(main)
        while self._answer is None and (following := self._reopened) is not None:
            await self._leave(main, "reopened")
            self._main = main = following
            self._reopened, self._rename, self._outbox.merged = None, following.rename, True
            await self._pumped(main)
        if self._answer is not None:
            await self._leave(main, "cut")
            await self._pump_answer()

    async def _pumped(self, main: Continuation) -> None:
        """Until the main stream ends, or is given up for another."""
        self._pump = asyncio.ensure_future(self._pump_main(main))
        try:
            await self._pump
        except asyncio.CancelledError:
            given_up = self._answer is not None or self._reopened is not None
            if not given_up or _cancelling():
                raise
        while self._beside and self.session.waiting:
            # The main stream ended while another was being opened.
            await asyncio.wait(self._beside, return_when=asyncio.FIRST_COMPLETED)

    async def _leave(self, main: Continuation, why: str) -> None:
        if self._pump is not None and self._pump.cancelled():
            self._metrics.aborts.labels(why).inc()
        await main.response.aclose()

    async def _end(self) -> None:
        self.session.ended()
        await self._outbox.flush()
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
            self._outbox.put(0, event_of(_DONE), None)
            await self._outbox.flush()
        await self._sink.end(note_of(self.session) if self._outbox.telling else None)

    async def _close(self) -> None:
        tasks = [task for task in (*self._beside, self._pump) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in (self._main, self._reopened, self._answer):
            if stream is not None:
                with contextlib.suppress(*TRANSPORT_ERRORS):
                    await stream.response.aclose()

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

    async def _ask_prompt(self) -> None:
        """The prompt's ids, beside a stream that tells none; without them no policy can judge."""
        try:
            async with asyncio.timeout(self._engine.settings.probe_timeout):
                prompt = await self._adapter.prompt(self._surface.fields, self._headers)
        except (TimeoutError, GatewayError, BadReply):
            self._fail_open("no-prompt-ids")
        else:
            self.session.opened(prompt)

    # -- the main stream -----------------------------------------------------------------------

    async def _pump_main(self, main: Continuation) -> None:
        splitter, take, flush = main.splitter, self._take, self._outbox.flush
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
        """One event of the main stream: show it to the session, queue it for the client."""
        chunk = self._read(event)
        if chunk is None:
            self._outbox.put(self._pieces, event, None)
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
                logprobs=self._surface.told(choice) if self._needs_logprobs else (),
            )
            self._finished = self._finished or choice.finish_reason is not None
        elif given(chunk.error):
            self._finished = True
        if self._rename is not None:
            event = self._rename(event)
        self._outbox.put(self._pieces, event, chunk)
        if command is not None:
            self.times.triggered = at
            task = asyncio.ensure_future(self._carry_out(command))
            self._beside.add(task)
            task.add_done_callback(self._beside.discard)

    def _read(self, event: bytes) -> Chunk | None:
        """The chunk that an event holds; None where it holds none, or one that can't be read."""
        if event.startswith(b"data: {"):
            # One line of JSON, nearly always; white space may follow it, and nothing else.
            try:
                return self._surface.decode(event[6:])
            except msgspec.MsgspecError:
                pass  # by the letter, then
        data = data_of(event)
        if data is None or data == _DONE:
            self._done = self._done or data == _DONE
            return None
        return self._decode(data)

    def _decode(self, data: bytes) -> Chunk | None:
        try:
            return self._surface.decode(data)
        except msgspec.MsgspecError:
            self._fail_open("unreadable-chunk")
            return None

    # -- beside the stream -----------------------------------------------------------------------

    async def _carry_out(self, command: Order | None) -> None:
        try:
            while command is not None:
                command = await self._step(command)
        except Exception as error:
            # A fault of ours must not become the client's.
            log.exception("beside the stream: %s", type(error).__name__)
            self._fail_open("internal-error")
            self.session.give_up("internal-error")
        await self._outbox.flush()

    async def _step(self, command: Order) -> Order | None:
        if isinstance(command, Ask | Represent):
            following = await self._prober.carry(self.session, command)
            if isinstance(following, Cut):
                self.times.triggered = time.perf_counter()
            return following
        try:
            if isinstance(command, Reopen):
                return await self._reopen(command)
            if self._adapter.in_place:
                await self._end_trace()
            else:
                await self._resume(command)
            return None
        except _Refused as refused:
            self._fail_open(refused.reason)
            return self.session.refused(refused.reason)

    async def _resume(self, cut: Cut) -> None:
        """Open the answer from the kept prefix; only then is the main stream given up."""
        session = self.session
        ids = (*cut.said.ids, *cut.closing)
        answer = await self._draw(
            [*session.prompt, *session.generated[: cut.kept], *ids], self._left(cut)
        )
        session.resumed()
        self._answer = answer
        self._give_up_main(session.released, cut.edge)
        self._say(cut.said, 0)
        self.times.resumed = time.perf_counter()

    async def _end_trace(self) -> None:
        """Have the engine end the trace in the main stream, which goes on with the answer."""
        try:
            async with asyncio.timeout(self._engine.settings.resume_timeout):
                await self._adapter.end_trace(self._first.id, self._labels[0], self._headers)
        except (TimeoutError, GatewayError, BadReply):
            raise _Refused("resume-failed") from None
        self.session.closing_in_place()
        self.times.resumed = time.perf_counter()

    async def _reopen(self, reopen: Reopen) -> Order | None:
        """Go on with the trace behind what is put into it."""
        session, said = self.session, reopen.said
        prompt = [*session.prompt, *session.generated[: reopen.kept], *said.ids]
        left = self._left_behind(reopen.kept + len(said.ids))
        self._more += 1
        fields = self._surface.more(prompt, left, reopen.bias)
        following = await self._begin(Continuation, fields, prompt, left, f"more-{self._more}")
        command = session.reopened(time.perf_counter())
        self._reopened = following
        self._give_up_main(reopen.pieces)
        self._pieces = reopen.pieces + 1  # the text that was put in is one
        self._say(said, self._pieces)
        return command

    async def _draw(self, prompt: list[int], left: int | None) -> Answer:
        """An answer from these ids. Raises _Refused."""
        self._drawn += 1
        label = "answer" if self._drawn == 1 else f"answer-{self._drawn}"
        return await self._begin(Answer, self._surface.answer(prompt, left), prompt, left, label)

    async def _begin(
        self, kind: type[_Stream], fields: Fields, prompt: list[int], left: int | None, label: str
    ) -> _Stream:
        """Open a stream from these ids, of ``left`` tokens. Raises _Refused."""
        if left is not None and left < 1:
            raise _Refused("no-token-left")
        response = begun = None
        try:
            async with asyncio.timeout(self._engine.settings.resume_timeout):
                response = await self._open(fields, f"{self._request_id}-{label}")
                begun = await kind.begun(response, prompt, self._surface.decode, self._first)
        except (TimeoutError, GatewayError, msgspec.MsgspecError, *TRANSPORT_ERRORS):
            raise _Refused("resume-failed") from None
        finally:
            if begun is None and response is not None:
                await response.aclose()
        if begun is None:
            taken = response.status_code == 200
            raise _Refused("ids-not-honoured" if taken else "resume-rejected")
        return begun

    def _left(self, cut: Cut) -> int | None:
        """Tokens that the answer may have; None where the client set no limit."""
        left = self._left_behind(cut.kept + len(cut.said.ids) + len(cut.closing))
        if cut.rescue is not None:
            return max(left or 0, self._engine.settings.rescue_tokens)
        return left

    def _left_behind(self, spent: int) -> int | None:
        return None if self._surface.limit is None else self._surface.limit - spent

    def _give_up_main(self, pieces: int, edge: int = 0) -> None:
        """What stands behind these pieces and ``edge`` ids more is nobody's; what was released may
        still be on its way."""
        if self._pump is not None:
            self._pump.cancel()
        self._finished = self._done = False
        self._broken = None
        for event, chunk in self._outbox.withdraw(pieces):
            ids = len(chunk.choices[0].token_ids or ()) if chunk and chunk.choices else 0
            if edge > 0 and ids:
                self._append(self._surface.edge(event, min(edge, ids)))
                edge -= ids

    def _say(self, said: Said, number: int) -> None:
        """Show the client what was put into the trace, as the piece that it is."""
        if said.ids:
            self._append(self._surface.said(self._first, said), number)

    def _fail_open(self, reason: str) -> None:
        self._metrics.fail_open.labels(self._labels[1], reason).inc()
        self.session.mute(reason)

    # -- the answer behind a cut -----------------------------------------------------------------

    async def _pump_answer(self) -> None:
        """The answer to its end, and the one that takes its place where it thinks again."""
        self._outbox.release()
        self._outbox.merged = False  # its usage is made the response's as it comes
        while (answer := self._answer) is not None:
            try:
                async for events in answer.batches():
                    if await self._tell_answer(answer, events):
                        break
                else:
                    self._answer = None
            except httpx.ReadTimeout:
                self._broken, self._answer = "timeout", None
            except TRANSPORT_ERRORS:
                self._broken, self._answer = "broken", None
            if self._answer is None:
                self._take_free(answer)
                await answer.response.aclose()

    async def _tell_answer(self, answer: Answer, events: list[bytes]) -> bool:
        """Whether another answer took this one's place."""
        session = self.session
        for event in events:
            chunk = self._read(event)
            answer.held.append((event, chunk))
            watched = answer.watched and (session.stopped or session.rescued is not None)
            latest = 0
            if watched and chunk is not None:
                latest = answer.watch(chunk, session.marks.markers)
            self._take_free(answer, latest)
            if answer.marker and answer.watched:
                await self._outbox.flush()
                if await self._end_escape(answer):
                    return True
                answer.watched = False
                self._take_free(answer)
        await self._outbox.flush()
        return False

    def _take_free(self, answer: Answer, latest: int = 0) -> None:
        for event, chunk in answer.free(latest):
            self._take_answer(answer, event, chunk)

    def _take_answer(self, answer: Answer, event: bytes, chunk: Chunk | None) -> None:
        if chunk is None:
            self._outbox.put(0, event, None)
            return
        self._finished = self._finished or given(chunk.error)
        event = answer.rename(event)
        for choice in chunk.choices:
            ids = choice.token_ids or ()
            answer.ids.extend(ids)
            self.session.answered(len(ids))
            self._finished = self._finished or choice.finish_reason is not None
            if answer.closing_due:
                event = self._surface.closed(event, choice, self.session.closing)
                answer.closing_due = False
        if chunk.usage is not None:
            event = event_of(with_usage(data_of(event) or b"{}", self.session.ledger))
        self._outbox.put(0, event, chunk)

    async def _end_escape(self, answer: Answer) -> bool:
        """Close the trace that the answer opened at once, and draw on; only the first one: a model
        that will think thinks."""
        labels, session = self._labels, self.session
        if self._escaped or not self._engine.settings.end_escapes:
            self._metrics.escapes.labels(*labels, "left").inc()
            return False
        self._escaped = True
        marker = (*answer.marker, *session.marks.closing)
        left = self._left_behind(session.ledger.completion + len(marker))
        try:
            following = await self._draw([*answer.prompt, *answer.ids, *marker], left)
        except _Refused:
            self._metrics.escapes.labels(*labels, "refused").inc()
            return False
        self._metrics.escapes.labels(*labels, "ended").inc()
        self._metrics.aborts.labels("cut").inc()
        session.closed_again(marker, len(answer.held_ids), told=not answer.closing_due)
        await answer.response.aclose()
        self._answer = following
        return True

    def _append(self, event: bytes | None, number: int = 0) -> None:
        """An event that was made here."""
        if event is not None:
            self._outbox.put(number, event, self._decode(data_of(event) or b"{}"))


def _cancelling() -> bool:
    """Whether who runs here is to end. A frame that kept its task would be kept by it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Refused(Exception):
    """The engine would not open a stream from a kept prefix."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
