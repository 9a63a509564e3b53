"""Relay the answer after a cut, and close a trace that the answer opens again."""

from __future__ import annotations

from adjourn.policies.session.session import Session
from adjourn.server.api.endpoint import Endpoint
from adjourn.server.metrics import Metrics
from adjourn.server.relay.answer import AnswerContinuation
from adjourn.server.relay.engine_calls import ContinuationRefused, EngineCalls
from adjourn.server.relay.event_reader import EventReader
from adjourn.server.relay.outbox import Outbox
from adjourn.server.relay.progress import Progress
from adjourn.server.stream.chunk import Chunk, encode_event, has_value
from adjourn.server.stream.sse import event_data
from adjourn.server.stream.usage import with_total_usage
from adjourn.server.upstream import http
from adjourn.server.upstream.client import TRANSPORT_ERRORS

__all__ = ["AnswerStream"]


class AnswerStream:
    """The answer of one response; starts only after the main stream is closed.

    A model that was cut too early may open a trace again in its answer: an *escape*. The first
    escape is closed at once by a second answer; later ones are left as they are.

    state              content                                               changed by
    -----------------  ----------------------------------------------------  ---------------------
    current            the answer being read; None at its end                run, _close_escape
    _escape_handled    an escape was seen and closed                         _close_escape
    """

    def __init__(
        self,
        answer: AnswerContinuation,
        session: Session,
        endpoint: Endpoint,
        outbox: Outbox,
        calls: EngineCalls,
        reader: EventReader,
        progress: Progress,
        metrics: Metrics,
        labels: tuple[str, str],
        *,
        close_escapes: bool,
    ) -> None:
        self.current: AnswerContinuation | None = answer
        self._session = session
        self._endpoint = endpoint
        self._outbox = outbox
        self._calls = calls
        self._reader = reader
        self._progress = progress
        self._metrics = metrics
        self._labels = labels
        self._close_escapes = close_escapes
        self._escape_handled = False

    async def run(self) -> None:
        """Relay the answer to its end, and the answer that replaces it after an escape."""
        self._outbox.queue_released()
        self._outbox.should_rewrite_usage = False  # `_queue` rewrites the usage of an answer
        while (answer := self.current) is not None:
            try:
                async for events in answer.iter_event_batches():
                    if await self._relay_batch(answer, events):
                        break
                else:
                    self.current = None
            except http.ReadTimeout:
                self._progress.failure, self.current = "timeout", None
            except TRANSPORT_ERRORS:
                self._progress.failure, self.current = "broken", None
            if self.current is None:
                self._release_held(answer)
                await answer.response.aclose()

    async def _relay_batch(self, answer: AnswerContinuation, events: list[bytes]) -> bool:
        """Relay events that came together. True if another answer replaced this one."""
        session = self._session
        for event in events:
            chunk = self._reader.parse(event)
            answer.held_events.append((event, chunk))
            is_watched = answer.is_scanning and (
                session.stopped or session.rescued_finish_reason is not None
            )
            hold_ids = 0
            if is_watched and chunk is not None:
                hold_ids = answer.scan_for_start_marker(chunk, session.dialect.matcher)
            self._release_held(answer, hold_ids)
            if answer.start_marker and answer.is_scanning:
                await self._outbox.flush()
                if await self._close_escape(answer):
                    return True
                answer.is_scanning = False
                self._release_held(answer)
        await self._outbox.flush()
        return False

    def _release_held(self, answer: AnswerContinuation, hold_ids: int = 0) -> None:
        for event, chunk in answer.release_held(hold_ids):
            self._queue(answer, event, chunk)

    def _queue(self, answer: AnswerContinuation, event: bytes, chunk: Chunk | None) -> None:
        """Queue an event of the answer as an event of the client's response."""
        if chunk is None:
            self._outbox.put(0, event, None)
            return
        if has_value(chunk.error):
            self._progress.saw_finish = True
        event = answer.rewrite_id(event)
        for choice in chunk.choices:
            ids = choice.token_ids or ()
            answer.sent_ids.extend(ids)
            self._session.on_answer_tokens(len(ids))
            if choice.finish_reason is not None:
                self._progress.saw_finish = True
            if answer.closing_pending:
                event = self._endpoint.prepend_closing(event, choice, self._session.closing)
                answer.closing_pending = False
        if chunk.usage is not None:
            usage = with_total_usage(event_data(event) or b"{}", self._session.ledger)
            event = encode_event(usage)
        self._outbox.put(0, event, chunk)

    async def _close_escape(self, answer: AnswerContinuation) -> bool:
        """Close the trace that the answer opened, and replace the answer by a new one. False if
        the escape stays: it is not the first, closing is off, or the engine refuses."""
        escapes, session = self._metrics.escapes, self._session
        if self._escape_handled or not self._close_escapes:
            escapes.labels(*self._labels, "left").inc()
            return False
        self._escape_handled = True
        marker = (*answer.start_marker, *session.dialect.closing)
        max_tokens = self._calls.remaining_tokens(session.ledger.completion + len(marker))
        prompt = [*answer.prompt, *answer.sent_ids, *marker]
        try:
            following = await self._calls.request_answer(prompt, max_tokens)
        except ContinuationRefused:
            escapes.labels(*self._labels, "refused").inc()
            return False
        escapes.labels(*self._labels, "ended").inc()
        self._metrics.upstream_aborts.labels("cut").inc()
        session.on_trace_reclosed(
            marker, len(answer.held_ids), client_saw_closing=not answer.closing_pending
        )
        await answer.response.aclose()
        self.current = following
        return True
