"""Carry one choice of a response under a policy from the engine to the client.

The relay drives a ``Session``: it reads the main stream, feeds each chunk to the session, and sends
what the session has released, byte for byte. It carries out the session's orders concurrently with
the stream: probes, and at a cut the answer. The main stream is aborted only when the answer has
begun; until then everything can go on as if there were no gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from adjourn.policies.session.orders import (
    Cut,
    InsertedText,
    Order,
    Reopen,
    RequestEmbedding,
    SendProbe,
)
from adjourn.policies.session.session import Session
from adjourn.server.api.endpoint import Endpoint
from adjourn.server.engines.adapter import Adapter
from adjourn.server.errors import interruption_error
from adjourn.server.metrics import Metrics
from adjourn.server.relay.answer_stream import AnswerStream
from adjourn.server.relay.continuation import Continuation
from adjourn.server.relay.engine_calls import ContinuationRefused, EngineCalls, Headers
from adjourn.server.relay.event_reader import DONE, EventReader
from adjourn.server.relay.fail_open import FailOpen
from adjourn.server.relay.outbox import Outbox
from adjourn.server.relay.prober import Prober
from adjourn.server.relay.progress import Progress
from adjourn.server.relay.times import Times
from adjourn.server.stream.chunk import encode_event, has_value
from adjourn.server.stream.sinks import Sink
from adjourn.server.stream.sse import event_data
from adjourn.server.stream.usage import summarize_session
from adjourn.server.upstream import http
from adjourn.server.upstream.client import TRANSPORT_ERRORS
from adjourn.server.upstream.pooling import Embedder

__all__ = ["Relay"]

log = logging.getLogger("adjourn.relay")


class Relay:
    """One choice of a response. ``run`` carries it to its end, once.

    state              content                                             changed by
    -----------------  --------------------------------------------------  ---------------------
    session            the policy's view of the response                   the pump, _execute_order
    status             the client's HTTP status                            run, _finish_response
    _progress          what the current stream said about its end          the pump, AnswerStream
    _main_stream       the stream being pumped                             _relay_streams
    _next_main_stream  the reopened stream that will replace it            _reopen_trace
    _rewrite_id        gives a reopened stream's events the response's id  _relay_streams
    _answer_stream     the answer after a cut; set once                    _open_answer
    _pump_task         reads the main stream                               _run_main_pump
    _command_tasks     the orders being carried out; one at a time, as     _process_main_event
                       the session gives one order at a time

    Invariants: nothing is written to the sink except by the outbox, in order. The main stream is
    aborted (``_abandon_main_stream``) only after another stream has begun. Nothing here keeps a
    reference to the request, so that its memory is freed without the garbage collector.
    """

    def __init__(
        self,
        adapter: Adapter,
        endpoint: Endpoint,
        headers: Headers,
        request_id: str,
        session: Session,
        sink: Sink,
        metrics: Metrics,
        labels: tuple[str, str],
        always_summarize: bool,
        arrived: float,
        embedder: Embedder | None = None,
    ) -> None:
        """``labels``: model and policy. ``arrived``: when the request came, seconds of the
        monotonic clock. ``always_summarize``: add the summary even if the policy did nothing."""
        self.session = session
        self.times = Times(arrived)
        self.status = 200
        self._endpoint = endpoint
        self._sink = sink
        self._metrics = metrics
        self._labels = labels
        self._progress = Progress()
        self._fail_open = FailOpen(session, metrics, labels[1])
        self._reader = EventReader(endpoint, self._progress, self._fail_open)
        self._calls = EngineCalls(adapter, endpoint, headers, request_id, labels[0], self.times)
        self._outbox = Outbox(session, endpoint, sink, self.times, always_summarize)
        self._prober = Prober(adapter, headers, endpoint.shared_fields, metrics, labels, embedder)
        self._needs_logprobs = session.policy.needs.logprobs > 0
        self._main_stream: Continuation | None = None
        self._next_main_stream: Continuation | None = None
        self._rewrite_id: Callable[[bytes], bytes] | None = None
        self._answer_stream: AnswerStream | None = None
        self._pump_task: asyncio.Task[None] | None = None
        self._command_tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Relay the response. Raises GatewayError only if nothing was written yet."""
        try:
            response = await self._calls.open_main()
            self._main_stream = Continuation(response, [])
            if response.status_code != 200:
                self.status = response.status_code
                await self._sink.forward_response(response)
                return
            self._sink.open(response)
            if self._calls.ends_in_place:
                await self._fetch_prompt_ids()
            await self._relay_streams(self._main_stream)
            await self._finish_response()
        finally:
            await self._clean_up()

    @property
    def is_complete(self) -> bool:
        """Whether the client has the last event, even if the engine's stream has not ended yet."""
        return self._progress.saw_done and self._outbox.is_empty

    async def probe_certainty(self, answer: str) -> float | None:
        """The model's probability, in [0, 1], that its whole answer is correct."""
        return await self._prober.probe_certainty(self.session, answer)

    async def _fetch_prompt_ids(self) -> None:
        """Without the prompt's ids no policy can run."""
        prompt = await self._calls.fetch_prompt_ids()
        if prompt is None:
            self._fail_open("no-prompt-ids")
        else:
            self.session.on_prompt(prompt)

    async def _relay_streams(self, main: Continuation) -> None:
        """The main stream, the streams that reopen it, and the answer after a cut."""
        await self._run_main_pump(main)
        while self._answer_stream is None and (following := self._next_main_stream) is not None:
            await self._close_main_stream(main, "reopened")
            self._main_stream = main = following
            self._next_main_stream, self._rewrite_id = None, following.rewrite_id
            self._outbox.should_rewrite_usage = True
            await self._run_main_pump(main)
        if self._answer_stream is not None:
            await self._close_main_stream(main, "cut")
            await self._answer_stream.run()

    async def _run_main_pump(self, main: Continuation) -> None:
        """Pump the main stream until it ends or another stream replaces it."""
        self._pump_task = asyncio.ensure_future(self._pump_main_stream(main))
        try:
            await self._pump_task
        except asyncio.CancelledError:
            is_replaced = self._answer_stream is not None or self._next_main_stream is not None
            if not is_replaced or _is_cancelling():
                raise
        while self._command_tasks and self.session.is_switching_stream:
            # The main stream ended while another was being opened.
            await asyncio.wait(self._command_tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _close_main_stream(self, main: Continuation, reason: str) -> None:
        if self._pump_task is not None and self._pump_task.cancelled():
            self._metrics.upstream_aborts.labels(reason).inc()
        await main.response.aclose()

    async def _finish_response(self) -> None:
        progress = self._progress
        self.session.on_stream_end()
        await self._outbox.flush()
        if (problem := progress.problem) is not None:
            error = interruption_error(problem)
            self.status = error.status
            if not self._sink.has_started:
                raise error  # the caller counts it
            self._metrics.upstream_errors.labels(problem).inc()
            await self._sink.fail(error)
            return
        if not progress.saw_done:
            self._outbox.put(0, encode_event(DONE), None)
            await self._outbox.flush()
        await self._sink.end(summarize_session(self.session) if self._outbox.has_summary else None)

    async def _clean_up(self) -> None:
        tasks = [task for task in (*self._command_tasks, self._pump_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        answer = self._answer_stream.current if self._answer_stream is not None else None
        for stream in (self._main_stream, self._next_main_stream, answer):
            if stream is not None:
                with contextlib.suppress(*TRANSPORT_ERRORS):
                    await stream.response.aclose()

    async def _pump_main_stream(self, main: Continuation) -> None:
        splitter, take, flush = main.splitter, self._process_main_event, self._outbox.flush
        for event in main.first_events:
            take(event, time.perf_counter())
        try:
            async for data in main.byte_stream:
                now = time.perf_counter()
                if not self.times.first_read:
                    self.times.first_read = now
                for event in splitter.feed(data):
                    take(event, now)
                await flush()
        except http.ReadTimeout:
            self._progress.failure = "timeout"
        except TRANSPORT_ERRORS:
            self._progress.failure = "broken"
        if splitter.remainder.strip():
            take(splitter.remainder, time.perf_counter())
            await flush()

    def _process_main_event(self, event: bytes, at: float) -> None:
        """Feed one event of the main stream to the session, and queue it for the client."""
        chunk, session = self._reader.parse(event), self.session
        if chunk is None:
            self._outbox.put(session.chunk_count, event, None)
            return
        if session.chunk_count == 0:
            self._calls.first_chunk = chunk
        if chunk.prompt_token_ids is not None and not session.prompt:
            session.on_prompt(chunk.prompt_token_ids)
        order = None
        if chunk.choices:
            choice, endpoint = chunk.choices[0], self._endpoint
            order = session.feed(
                choice.delta.reasoning_text,
                choice.token_ids or (),
                at,
                answering=endpoint.has_answer(choice),
                finish_reason=choice.finish_reason,
                logprobs=endpoint.logprobs_of(choice) if self._needs_logprobs else (),
            )
            if choice.finish_reason is not None:
                self._progress.saw_finish = True
        elif has_value(chunk.error):
            self._progress.saw_finish = True
        if self._rewrite_id is not None:
            event = self._rewrite_id(event)
        self._outbox.put(session.chunk_count, event, chunk)
        if order is not None:
            self.times.triggered = at
            task = asyncio.ensure_future(self._execute_orders(order))
            self._command_tasks.add(task)
            task.add_done_callback(self._command_tasks.discard)

    async def _execute_orders(self, order: Order | None) -> None:
        """Carry out an order, and those that the session gives in answer to its result."""
        try:
            while order is not None:
                order = await self._execute_order(order)
        except Exception as error:
            # Fail open: a fault of the gateway must not break the client's stream.
            log.exception("carrying out an order: %s", type(error).__name__)
            self._fail_open("internal-error")
            self.session.abort_pending("internal-error")
        await self._outbox.flush()

    async def _execute_order(self, order: Order) -> Order | None:
        if isinstance(order, SendProbe | RequestEmbedding):
            following = await self._prober.execute(self.session, order)
            if isinstance(following, Cut):
                self.times.triggered = time.perf_counter()
            return following
        try:
            if isinstance(order, Reopen):
                return await self._reopen_trace(order)
            if self._calls.ends_in_place:
                await self._calls.end_trace_in_place()
                self.session.on_ending_in_place()
                self.times.resumed = time.perf_counter()
            else:
                await self._open_answer(order)
            return None
        except ContinuationRefused as refused:
            self._fail_open(refused.reason)
            return self.session.on_refused(refused.reason)

    async def _open_answer(self, cut: Cut) -> None:
        """Open the answer from the kept prefix; only then abort the main stream."""
        session = self.session
        answer = await self._calls.open_answer(session, cut)
        session.on_resumed()
        self._answer_stream = AnswerStream(
            answer,
            session,
            self._endpoint,
            self._outbox,
            self._calls,
            self._reader,
            self._progress,
            self._metrics,
            self._labels,
            close_escapes=self._calls.closes_escapes,
        )
        self._abandon_main_stream(session.released_chunks, cut.unreleased_ids)
        self._queue_inserted_text(cut.inserted, 0)
        self.times.resumed = time.perf_counter()

    async def _reopen_trace(self, reopen: Reopen) -> Order | None:
        """Continue the trace in another stream, after the text that the policy inserts."""
        following = await self._calls.reopen(self.session, reopen)
        order = self.session.on_reopened(time.perf_counter())
        self._next_main_stream = following
        self._abandon_main_stream(reopen.chunks)
        self._queue_inserted_text(reopen.inserted, self.session.chunk_count)
        return order

    def _abandon_main_stream(self, keep_chunks: int, keep_ids: int = 0) -> None:
        """Stop the pump. Discard the events after the first ``keep_chunks`` chunks, but keep the
        next ``keep_ids`` token ids of the trace. Released events may still be unsent: they stay."""
        if self._pump_task is not None:
            self._pump_task.cancel()
        self._progress.reset()
        for event, chunk in self._outbox.withdraw(keep_chunks):
            ids = len(chunk.choices[0].token_ids or ()) if chunk and chunk.choices else 0
            if keep_ids > 0 and ids:
                self._queue_own_event(self._endpoint.trim_to_trace(event, min(keep_ids, ids)))
                keep_ids -= ids

    def _queue_inserted_text(self, inserted: InsertedText, chunk_number: int) -> None:
        """Send the client the text that was inserted into the trace, as chunk ``chunk_number``."""
        if inserted.ids:
            event = self._endpoint.render_inserted_text(self._calls.first_chunk, inserted)
            self._queue_own_event(event, chunk_number)

    def _queue_own_event(self, event: bytes | None, chunk_number: int = 0) -> None:
        """Queue an event that the gateway made."""
        if event is not None:
            self._outbox.put(chunk_number, event, self._reader.decode(event_data(event) or b"{}"))


def _is_cancelling() -> bool:
    """Whether the current task itself is being cancelled. (Its own function: a local variable for
    the task would keep the calling frame alive.)"""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
