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

from adjourn.policies.session.orders import (
    Cut,
    InsertedText,
    Order,
    Reopen,
    RequestEmbedding,
    SendProbe,
)
from adjourn.policies.session.session import Session
from adjourn.server.api.endpoint import Endpoint, Fields
from adjourn.server.engines.adapter import Adapter
from adjourn.server.errors import GatewayError, interruption_error
from adjourn.server.metrics import Metrics
from adjourn.server.relay.answer import AnswerContinuation
from adjourn.server.relay.continuation import Continuation
from adjourn.server.relay.outbox import Outbox
from adjourn.server.relay.prober import Prober
from adjourn.server.relay.times import Times
from adjourn.server.stream.chunk import Chunk, encode_event, has_value
from adjourn.server.stream.sinks import Sink
from adjourn.server.stream.sse import event_data
from adjourn.server.stream.usage import summarize_session, with_total_usage
from adjourn.server.upstream.client import TRANSPORT_ERRORS, BadReply
from adjourn.server.upstream.pooling import Embedder

__all__ = ["Relay"]

log = logging.getLogger("adjourn.relay")

_DONE = b"[DONE]"
Headers = Sequence[tuple[bytes, bytes]]
_ContinuationT = TypeVar("_ContinuationT", bound=Continuation)


class Relay:
    """``run`` carries the response. Raises GatewayError only while nothing was written."""

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
        self.session = session
        self.times = Times(arrived)
        self.status = 200
        self._adapter = adapter
        self._engine = adapter.engine
        self._endpoint = endpoint
        self._headers = headers
        self._request_id = request_id
        self._sink = sink
        self._metrics = metrics
        self._labels = labels
        self._first_chunk = Chunk()
        self._chunk_count = 0
        self._outbox = Outbox(session, endpoint, sink, self.times, always_summarize)
        self._prober = Prober(adapter, headers, endpoint.shared_fields, metrics, labels, embedder)
        self._needs_logprobs = session.policy.needs.logprobs > 0
        self._main_stream: Continuation | None = None
        self._next_main_stream: Continuation | None = None  # takes the main stream's place
        self._rewrite_id: Callable[[bytes], bytes] | None = (
            None  # for a main stream that was reopened
        )
        self._answer_stream: AnswerContinuation | None = None
        self._continuation_count = 0
        self._answer_count = 0
        self._escape_handled = False
        self._pump_task: asyncio.Task[None] | None = None
        self._command_tasks: set[asyncio.Task[None]] = set()
        self._failure_reason: str | None = None
        self._saw_finish = False
        self._saw_done = False

    # -- the life of a response --------------------------------------------------------------

    async def run(self) -> None:
        try:
            response = await self._send_request(self._endpoint.main_fields, self._request_id)
            self._main_stream = Continuation(response, [])
            if response.status_code != 200:
                self.status = response.status_code
                await self._sink.forward_response(response)
                return
            self._sink.open(response)
            if self._adapter.ends_in_place:
                await self._fetch_prompt_ids()
            await self._relay_streams(self._main_stream)
            await self._finish_response()
        finally:
            await self._clean_up()

    @property
    def is_complete(self) -> bool:
        """Whether the client has the last event, though the engine's stream is not ended yet."""
        return self._saw_done and self._outbox.is_empty

    async def probe_certainty(self, answer: str) -> float | None:
        """How sure the model is, in [0, 1], that the whole answer is correct."""
        return await self._prober.probe_certainty(self.session, answer)

    async def _relay_streams(self, main: Continuation) -> None:
        await self._run_main_pump(main)
        while self._answer_stream is None and (following := self._next_main_stream) is not None:
            await self._close_main_stream(main, "reopened")
            self._main_stream = main = following
            self._next_main_stream, self._rewrite_id, self._outbox.should_rewrite_usage = (
                None,
                following.rewrite_id,
                True,
            )
            await self._run_main_pump(main)
        if self._answer_stream is not None:
            await self._close_main_stream(main, "cut")
            await self._pump_answer()

    async def _run_main_pump(self, main: Continuation) -> None:
        """Until the main stream ends, or is given up for another."""
        self._pump_task = asyncio.ensure_future(self._pump_main_stream(main))
        try:
            await self._pump_task
        except asyncio.CancelledError:
            given_up = self._answer_stream is not None or self._next_main_stream is not None
            if not given_up or _is_cancelling():
                raise
        while self._command_tasks and self.session.is_switching_stream:
            # The main stream ended while another was being opened.
            await asyncio.wait(self._command_tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _close_main_stream(self, main: Continuation, reason: str) -> None:
        if self._pump_task is not None and self._pump_task.cancelled():
            self._metrics.upstream_aborts.labels(reason).inc()
        await main.response.aclose()

    async def _finish_response(self) -> None:
        self.session.on_stream_end()
        await self._outbox.flush()
        if self._failure_reason is None and not self._saw_finish:
            self._failure_reason = "truncated"
        if self._failure_reason is not None:
            error = interruption_error(self._failure_reason)
            self.status = error.status
            if not self._sink.has_started:
                raise error  # who answers with it counts it
            self._metrics.upstream_errors.labels(self._failure_reason).inc()
            await self._sink.fail(error)
            return
        if not self._saw_done:
            self._outbox.put(0, encode_event(_DONE), None)
            await self._outbox.flush()
        await self._sink.end(summarize_session(self.session) if self._outbox.has_summary else None)

    async def _clean_up(self) -> None:
        tasks = [task for task in (*self._command_tasks, self._pump_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in (self._main_stream, self._next_main_stream, self._answer_stream):
            if stream is not None:
                with contextlib.suppress(*TRANSPORT_ERRORS):
                    await stream.response.aclose()

    # -- upstream requests ---------------------------------------------------------------------

    async def _send_request(self, fields: Fields, request_id: str) -> httpx.Response:
        headers = [
            *(header for header in self._headers if header[0] != b"accept-encoding"),
            (b"accept-encoding", b"identity"),  # it is read here
            (b"x-request-id", request_id.encode()),
        ]
        body = msgspec.json.encode(fields)
        if not self.times.request_sent:
            self.times.request_sent = time.perf_counter()
        return await self._engine.send("POST", self._endpoint.path, headers, body)

    async def _fetch_prompt_ids(self) -> None:
        """The prompt's ids, beside a stream that tells none; without them no policy can judge."""
        try:
            async with asyncio.timeout(self._engine.settings.probe_timeout):
                prompt = await self._adapter.tokenize_chat(
                    self._endpoint.main_fields, self._headers
                )
        except (TimeoutError, GatewayError, BadReply):
            self._fail_open("no-prompt-ids")
        else:
            self.session.on_prompt(prompt)

    # -- the main stream -----------------------------------------------------------------------

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
        except httpx.ReadTimeout:
            self._failure_reason = "timeout"
        except TRANSPORT_ERRORS:
            self._failure_reason = "broken"
        if splitter.remainder.strip():
            take(splitter.remainder, time.perf_counter())
            await flush()

    def _process_main_event(self, event: bytes, at: float) -> None:
        """One event of the main stream: show it to the session, queue it for the client."""
        chunk = self._parse_event(event)
        if chunk is None:
            self._outbox.put(self._chunk_count, event, None)
            return
        if self._chunk_count == 0:
            self._first_chunk = chunk
        if chunk.prompt_token_ids is not None and not self.session.prompt:
            self.session.on_prompt(chunk.prompt_token_ids)
        command = None
        if chunk.choices:
            choice = chunk.choices[0]
            delta = choice.delta
            self._chunk_count += 1
            command = self.session.feed(
                delta.reasoning_text,
                choice.token_ids or (),
                at,
                answering=self._endpoint.has_answer(choice),
                finish_reason=choice.finish_reason,
                logprobs=self._endpoint.logprobs_of(choice) if self._needs_logprobs else (),
            )
            self._saw_finish = self._saw_finish or choice.finish_reason is not None
        elif has_value(chunk.error):
            self._saw_finish = True
        if self._rewrite_id is not None:
            event = self._rewrite_id(event)
        self._outbox.put(self._chunk_count, event, chunk)
        if command is not None:
            self.times.triggered = at
            task = asyncio.ensure_future(self._execute_orders(command))
            self._command_tasks.add(task)
            task.add_done_callback(self._command_tasks.discard)

    def _parse_event(self, event: bytes) -> Chunk | None:
        """The chunk that an event holds; None where it holds none, or one that can't be read."""
        if event.startswith(b"data: {"):
            # One line of JSON, nearly always; white space may follow it, and nothing else.
            try:
                return self._endpoint.decode(event[6:])
            except msgspec.MsgspecError:
                pass  # by the letter, then
        data = event_data(event)
        if data is None or data == _DONE:
            self._saw_done = self._saw_done or data == _DONE
            return None
        return self._decode_chunk(data)

    def _decode_chunk(self, data: bytes) -> Chunk | None:
        try:
            return self._endpoint.decode(data)
        except msgspec.MsgspecError:
            self._fail_open("unreadable-chunk")
            return None

    # -- beside the stream -----------------------------------------------------------------------

    async def _execute_orders(self, command: Order | None) -> None:
        try:
            while command is not None:
                command = await self._execute_order(command)
        except Exception as error:
            # A fault of ours must not become the client's.
            log.exception("beside the stream: %s", type(error).__name__)
            self._fail_open("internal-error")
            self.session.abort_pending("internal-error")
        await self._outbox.flush()

    async def _execute_order(self, command: Order) -> Order | None:
        if isinstance(command, SendProbe | RequestEmbedding):
            following = await self._prober.execute(self.session, command)
            if isinstance(following, Cut):
                self.times.triggered = time.perf_counter()
            return following
        try:
            if isinstance(command, Reopen):
                return await self._reopen_trace(command)
            if self._adapter.ends_in_place:
                await self._end_trace_in_place()
            else:
                await self._open_answer(command)
            return None
        except _ContinuationRefused as refused:
            self._fail_open(refused.reason)
            return self.session.on_refused(refused.reason)

    async def _open_answer(self, cut: Cut) -> None:
        """Open the answer from the kept prefix; only then is the main stream given up."""
        session = self.session
        ids = (*cut.inserted.ids, *cut.closing)
        answer = await self._request_answer(
            [*session.prompt, *session.generated[: cut.kept], *ids], self._answer_token_limit(cut)
        )
        session.on_resumed()
        self._answer_stream = answer
        self._abandon_main_stream(session.released_chunks, cut.unreleased_ids)
        self._queue_inserted_text(cut.inserted, 0)
        self.times.resumed = time.perf_counter()

    async def _end_trace_in_place(self) -> None:
        """Have the engine end the trace in the main stream, which goes on with the answer."""
        try:
            async with asyncio.timeout(self._engine.settings.resume_timeout):
                await self._adapter.end_trace(self._first_chunk.id, self._labels[0], self._headers)
        except (TimeoutError, GatewayError, BadReply):
            raise _ContinuationRefused("resume-failed") from None
        self.session.on_ending_in_place()
        self.times.resumed = time.perf_counter()

    async def _reopen_trace(self, reopen: Reopen) -> Order | None:
        """Go on with the trace behind what is put into it."""
        session, said = self.session, reopen.inserted
        prompt = [*session.prompt, *session.generated[: reopen.kept], *said.ids]
        left = self._remaining_tokens(reopen.kept + len(said.ids))
        self._continuation_count += 1
        fields = self._endpoint.continuation_fields(prompt, left, reopen.end_bias)
        following = await self._open_continuation(
            Continuation, fields, prompt, left, f"more-{self._continuation_count}"
        )
        command = session.on_reopened(time.perf_counter())
        self._next_main_stream = following
        self._abandon_main_stream(reopen.chunks)
        self._chunk_count = reopen.chunks + 1  # the text that was put in is one
        self._queue_inserted_text(said, self._chunk_count)
        return command

    async def _request_answer(
        self, prompt: list[int], max_tokens: int | None
    ) -> AnswerContinuation:
        """An answer from these ids. Raises _Refused."""
        self._answer_count += 1
        label = "answer" if self._answer_count == 1 else f"answer-{self._answer_count}"
        return await self._open_continuation(
            AnswerContinuation,
            self._endpoint.answer_fields(prompt, max_tokens),
            prompt,
            max_tokens,
            label,
        )

    async def _open_continuation(
        self,
        kind: type[_ContinuationT],
        fields: Fields,
        prompt: list[int],
        max_tokens: int | None,
        label: str,
    ) -> _ContinuationT:
        """Open a stream from these ids, of ``left`` tokens. Raises _Refused."""
        if max_tokens is not None and max_tokens < 1:
            raise _ContinuationRefused("no-token-left")
        response = begun = None
        try:
            async with asyncio.timeout(self._engine.settings.resume_timeout):
                response = await self._send_request(fields, f"{self._request_id}-{label}")
                begun = await kind.from_response(
                    response, prompt, self._endpoint.decode, self._first_chunk
                )
        except (TimeoutError, GatewayError, msgspec.MsgspecError, *TRANSPORT_ERRORS):
            raise _ContinuationRefused("resume-failed") from None
        finally:
            if begun is None and response is not None:
                await response.aclose()
        if begun is None:
            taken = response.status_code == 200
            raise _ContinuationRefused("ids-not-honoured" if taken else "resume-rejected")
        return begun

    def _answer_token_limit(self, cut: Cut) -> int | None:
        """Tokens that the answer may have; None where the client set no limit."""
        left = self._remaining_tokens(cut.kept + len(cut.inserted.ids) + len(cut.closing))
        if cut.rescued_finish_reason is not None:
            return max(left or 0, self._engine.settings.rescue_tokens)
        return left

    def _remaining_tokens(self, spent: int) -> int | None:
        return None if self._endpoint.token_limit is None else self._endpoint.token_limit - spent

    def _abandon_main_stream(self, keep_chunks: int, keep_ids: int = 0) -> None:
        """What stands behind these pieces and ``edge`` ids more is nobody's; what was released may
        still be on its way."""
        if self._pump_task is not None:
            self._pump_task.cancel()
        self._saw_finish = self._saw_done = False
        self._failure_reason = None
        for event, chunk in self._outbox.withdraw(keep_chunks):
            ids = len(chunk.choices[0].token_ids or ()) if chunk and chunk.choices else 0
            if keep_ids > 0 and ids:
                self._queue_own_event(self._endpoint.trim_to_trace(event, min(keep_ids, ids)))
                keep_ids -= ids

    def _queue_inserted_text(self, said: InsertedText, chunk_number: int) -> None:
        """Show the client what was put into the trace, as the piece that it is."""
        if said.ids:
            self._queue_own_event(
                self._endpoint.render_inserted_text(self._first_chunk, said), chunk_number
            )

    def _fail_open(self, reason: str) -> None:
        self._metrics.fail_open.labels(self._labels[1], reason).inc()
        self.session.mute(reason)

    # -- the answer behind a cut -----------------------------------------------------------------

    async def _pump_answer(self) -> None:
        """The answer to its end, and the one that takes its place where it thinks again."""
        self._outbox.queue_released()
        self._outbox.should_rewrite_usage = False  # its usage is made the response's as it comes
        while (answer := self._answer_stream) is not None:
            try:
                async for events in answer.iter_event_batches():
                    if await self._process_answer_batch(answer, events):
                        break
                else:
                    self._answer_stream = None
            except httpx.ReadTimeout:
                self._failure_reason, self._answer_stream = "timeout", None
            except TRANSPORT_ERRORS:
                self._failure_reason, self._answer_stream = "broken", None
            if self._answer_stream is None:
                self._release_held_events(answer)
                await answer.response.aclose()

    async def _process_answer_batch(self, answer: AnswerContinuation, events: list[bytes]) -> bool:
        """Whether another answer took this one's place."""
        session = self.session
        for event in events:
            chunk = self._parse_event(event)
            answer.held_events.append((event, chunk))
            watched = answer.is_scanning and (
                session.stopped or session.rescued_finish_reason is not None
            )
            latest = 0
            if watched and chunk is not None:
                latest = answer.scan_for_start_marker(chunk, session.dialect.matcher)
            self._release_held_events(answer, latest)
            if answer.start_marker and answer.is_scanning:
                await self._outbox.flush()
                if await self._close_escaped_trace(answer):
                    return True
                answer.is_scanning = False
                self._release_held_events(answer)
        await self._outbox.flush()
        return False

    def _release_held_events(self, answer: AnswerContinuation, hold_ids: int = 0) -> None:
        for event, chunk in answer.release_held(hold_ids):
            self._process_answer_event(answer, event, chunk)

    def _process_answer_event(
        self, answer: AnswerContinuation, event: bytes, chunk: Chunk | None
    ) -> None:
        if chunk is None:
            self._outbox.put(0, event, None)
            return
        self._saw_finish = self._saw_finish or has_value(chunk.error)
        event = answer.rewrite_id(event)
        for choice in chunk.choices:
            ids = choice.token_ids or ()
            answer.sent_ids.extend(ids)
            self.session.on_answer_tokens(len(ids))
            self._saw_finish = self._saw_finish or choice.finish_reason is not None
            if answer.closing_pending:
                event = self._endpoint.prepend_closing(event, choice, self.session.closing)
                answer.closing_pending = False
        if chunk.usage is not None:
            event = encode_event(with_total_usage(event_data(event) or b"{}", self.session.ledger))
        self._outbox.put(0, event, chunk)

    async def _close_escaped_trace(self, answer: AnswerContinuation) -> bool:
        """Close the trace that the answer opened at once, and draw on; only the first one: a model
        that will think thinks."""
        labels, session = self._labels, self.session
        if self._escape_handled or not self._engine.settings.end_escapes:
            self._metrics.escapes.labels(*labels, "left").inc()
            return False
        self._escape_handled = True
        marker = (*answer.start_marker, *session.dialect.closing)
        left = self._remaining_tokens(session.ledger.completion + len(marker))
        try:
            following = await self._request_answer(
                [*answer.prompt, *answer.sent_ids, *marker], left
            )
        except _ContinuationRefused:
            self._metrics.escapes.labels(*labels, "refused").inc()
            return False
        self._metrics.escapes.labels(*labels, "ended").inc()
        self._metrics.upstream_aborts.labels("cut").inc()
        session.on_trace_reclosed(
            marker, len(answer.held_ids), client_saw_closing=not answer.closing_pending
        )
        await answer.response.aclose()
        self._answer_stream = following
        return True

    def _queue_own_event(self, event: bytes | None, chunk_number: int = 0) -> None:
        """An event that was made here."""
        if event is not None:
            self._outbox.put(chunk_number, event, self._decode_chunk(event_data(event) or b"{}"))


def _is_cancelling() -> bool:
    """Whether who runs here is to end. A frame that kept its task would be kept by it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _ContinuationRefused(Exception):
    """The engine would not open a stream from a kept prefix."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
