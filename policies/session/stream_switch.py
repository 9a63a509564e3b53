"""Replace the main stream by another one, which starts from a kept prefix of the trace."""

from __future__ import annotations

from dataclasses import replace

from adjourn.policies.events import Extend, Stop
from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.orders import Cut, InsertedText, Reopen
from adjourn.policies.session.states import Input, State
from adjourn.policies.session.trace import ReceivedChunk, Trace
from adjourn.policies.session.window import CutPoint
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.policies.text.markers import NO_PARTIAL_MATCH, TokenIds

__all__ = ["StreamSwitch"]


class StreamSwitch:
    """The ``Cut`` or ``Reopen`` that the driver is carrying out, and how to undo it.

    Nothing of an order is certain before the engine has accepted it. Until then the main stream's
    chunks are collected; they are dropped if it accepts, and read after all if it refuses.

    state                   content                                          changed by
    ----------------------  -----------------------------------------------  -------------------
    order                   the order under way; None after it is resolved   begin_*, finish_*,
                                                                             refuse
    _is_answer              it is a cut without a trigger                    begin_*
    _ledger_before          the ledger to return to on refusal               begin_*
    overrun                 chunks of the main stream since the order        Session.feed; cleared
                                                                             with ``order``
    main_abandoned          the response is another stream's from now on     finish_cut
    closing                 the closing sequence of the latest cut           begin_*, reclosed
    extensions              texts inserted into the trace so far             finish_reopen
    rescued_finish_reason   the finish reason that an answer replaced        finish_cut
    """

    __slots__ = (
        *("_is_answer", "_ledger_before", "closing", "extensions", "main_abandoned", "order"),
        *("overrun", "rescued_finish_reason"),
    )

    def __init__(self) -> None:
        self.order: Cut | Reopen | None = None
        self._is_answer = False
        self._ledger_before = Ledger()
        self.overrun: list[ReceivedChunk] = []
        self.main_abandoned = False
        self.closing: TokenIds = ()
        self.extensions = 0
        self.rescued_finish_reason: str | None = None

    def begin_stop(self, trace: Trace, stop: Stop) -> Cut:
        """Cut the trace where its released chunks end, and count the rest as wasted."""
        place, ledger = trace.cut_point, trace.ledger
        trace.transition(Input.STOP)
        trace.released_chunks = place.chunks
        self._ledger_before = replace(ledger)
        inserted = _inserted_text(trace.dialect, stop.text_name)
        closing = trace.dialect.closing if stop.text_name else trace.closing_at(place)
        ledger.wasted += ledger.reasoning - place.position
        ledger.reasoning = place.position + len(inserted.ids)
        ledger.closing = len(closing)
        return self._begin_cut(Cut(place.kept, place.position, closing, inserted), is_answer=False)

    def begin_answer(self, cut: Cut, ledger_before: Ledger) -> None:
        """Carry out a cut without a trigger, at the trace's own end."""
        self._ledger_before = ledger_before
        self._begin_cut(cut, is_answer=True)

    def _begin_cut(self, cut: Cut, *, is_answer: bool) -> Cut:
        self.order, self._is_answer, self.closing = cut, is_answer, cut.closing
        return cut

    def begin_reopen(self, trace: Trace, place: CutPoint, extend: Extend) -> Reopen:
        """Let the trace continue at ``place`` in a new stream."""
        name = extend.text_name + ("-on-newline" if place.on_newline else "")
        inserted = _inserted_text(trace.dialect, name) if extend.text_name else InsertedText()
        order = Reopen(place.kept, place.position, place.chunks, inserted, extend.end_bias)
        self.order, self._is_answer = order, False
        self._ledger_before = replace(trace.ledger)
        trace.transition(Input.EXTEND)
        return order

    def put_back(self, trace: Trace, last: ReceivedChunk) -> None:
        """A reopen replaces the trace's end, ``last``: it is read again if the engine refuses."""
        self.overrun.append(last)
        del trace.generated[len(trace.generated) - len(last.ids) :]
        trace.ledger.wasted += len(last.ids)

    def finish_cut(self, trace: Trace) -> None:
        """The engine streams the answer; the main stream is abandoned."""
        assert isinstance(self.order, Cut)
        if self._is_answer:
            self.rescued_finish_reason = self.order.rescued_finish_reason
        else:
            assert trace.trigger is not None
            trace.trigger.action = "carried-out"
        self.main_abandoned, self.order = True, None
        self.overrun.clear()
        trace.transition(Input.RESUMED)

    def finish_reopen(self, trace: Trace) -> InsertedText:
        """The trace continues after the kept prefix. Returns the text to feed first."""
        assert isinstance(self.order, Reopen)
        reopen, self.order = self.order, None
        del trace.generated[reopen.kept :]
        trace.ledger.wasted += trace.ledger.reasoning - reopen.position
        trace.ledger.reasoning = reopen.position
        trace.window.drop_partial()
        trace.bounds.marker_state = NO_PARTIAL_MATCH
        trace.chunk_count = reopen.chunks
        self.overrun.clear()
        self.extensions += bool(reopen.inserted.ids)
        trace.transition(Input.RESUMED)
        return reopen.inserted

    def refuse(self, trace: Trace) -> list[ReceivedChunk]:
        """The engine refused the order. Returns the chunks to feed again."""
        is_answer = trace.state is State.CLOSING and self._is_answer
        if trace.state is State.CLOSING and not is_answer:
            assert trace.trigger is not None
            trace.trigger.action = "refused"
        trace.transition(Input.REFUSED)
        if is_answer:
            trace.transition(Input.ANSWER)
        return self._roll_back(trace)

    def finish_in_place(self, trace: Trace) -> list[ReceivedChunk]:
        """The engine closes the trace in the main stream. Returns the chunks to feed again."""
        assert trace.trigger is not None
        trace.trigger.action = "carried-out"
        trace.transition(Input.ENDED_IN_PLACE)
        return self._roll_back(trace)

    def _roll_back(self, trace: Trace) -> list[ReceivedChunk]:
        spent = trace.ledger  # what probes cost meanwhile was spent all the same
        trace.ledger = replace(self._ledger_before, probe=spent.probe, prefilled=spent.prefilled)
        overrun, self.overrun, self.order = self.overrun, [], None
        trace.chunk_count -= len(overrun)
        trace.release_all()
        return overrun


def _inserted_text(dialect: TokenizedDialect, name: str) -> InsertedText:
    """A text of the dialect; empty if it has none of this name."""
    if name not in dialect.inducers:
        return InsertedText()
    return InsertedText(dialect.definition.inducers[name], dialect.inducers[name])
