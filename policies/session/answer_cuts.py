"""Cuts that no policy asked for: an answer from a second request at the trace's own end."""

from __future__ import annotations

from dataclasses import dataclass

from adjourn.policies.session.bounds import EndMarker
from adjourn.policies.session.orders import Cut
from adjourn.policies.session.states import State
from adjourn.policies.session.trace import ReceivedChunk, Trace
from adjourn.policies.session.window import CutPoint
from adjourn.policies.text.markers import MarkerKind, TokenIds

__all__ = ["AnswerCuts", "TraceEnd"]


@dataclass(frozen=True, slots=True)
class TraceEnd:
    """The trace ended in the chunk ``last``, which comes after ``before``. ``marker``: the marker
    that ended it; None if an answer or the response's end did."""

    last: ReceivedChunk
    before: CutPoint
    marker: EndMarker | None


class AnswerCuts:
    """Whether a trace that ended by itself is cut, and where.

    ``separate``: generate the answer in a second request even if the model ended its reasoning
    (for client stop strings). ``rescue``: generate one if the response ends within its trace.
    Both change only when the driver gives up (``disable``).
    """

    __slots__ = ("_rescue", "_separate")

    def __init__(self, *, separate: bool, rescue: bool) -> None:
        self._separate = separate
        self._rescue = rescue

    def disable(self) -> None:
        self._separate = self._rescue = False

    def at_trace_end(self, trace: Trace, end: TraceEnd) -> Cut | None:
        """The cut, already counted in ``trace.ledger``; None if there is none to make.

        The trace's last chunk is counted before this is called.
        """
        last, marker = end.last, end.marker
        if marker is not None and marker.kind is MarkerKind.BREAK:
            return None  # the engine's parser has started to read a tool call
        has_answer = (
            last.answering
            or last.finish_reason is None
            or (marker is not None and marker.ids_after > 0)
        )
        if self._separate and has_answer:
            return _separate_answer(trace, end)
        unanswered = trace.state is not State.OPENING and marker is None and not last.answering
        if not (self._rescue and unanswered and last.finish_reason in ("length", "stop")):
            return None
        closing = trace.closing_at(trace.current_point)
        kept = _complete_ids(trace, end)
        return _cut(trace, end, kept, closing, rescue=last.finish_reason)


def _separate_answer(trace: Trace, end: TraceEnd) -> Cut:
    if end.marker is None or trace.state is State.OPENING:
        return _cut(trace, end, end.before.kept)
    kept = len(trace.generated) - end.marker.ids_after
    if end.marker.length == 1:
        return _cut(trace, end, kept)
    # The parser may have to see how the marker ends (harmony's does), so the model writes it again.
    closing = trace.closing_at(trace.current_point)
    length = end.marker.length
    return _cut(trace, end, kept - length, closing, marker_ids=length)


def _complete_ids(trace: Trace, end: TraceEnd) -> int:
    """How many ids to keep of a response that ended within its trace: all, except the beginning of
    a marker, and the end-of-sequence id."""
    if not end.last.reasoning:
        return end.before.kept
    has_eos = end.last.finish_reason == "stop" and bool(end.last.ids)
    return len(trace.generated) - max(has_eos, trace.bounds.partial_length)


def _cut(
    trace: Trace,
    end: TraceEnd,
    kept: int,
    closing: TokenIds = (),
    *,
    marker_ids: int = 0,
    rescue: str | None = None,
) -> Cut:
    """Keep ``kept`` ids, and count those after them as wasted. ``marker_ids``: how many of the
    wasted ids were counted as a marker."""
    ledger = trace.ledger
    ledger.wasted += len(trace.generated) - kept
    if trace.state is State.OPENING:
        ledger.answer = kept
    else:
        ledger.marker -= marker_ids
        ledger.reasoning, ledger.answer = kept - ledger.marker, 0
    ledger.closing = len(closing)
    unreleased = kept - end.before.kept + end.before.opening_ids
    return Cut(
        kept, ledger.reasoning, closing, unreleased_ids=unreleased, rescued_finish_reason=rescue
    )
