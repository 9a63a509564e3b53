"""One request under a policy, as a state machine without I/O.

A driver (the server, a replay, a test) calls the session with what the engine sent, one chunk at a
time, and carries out the orders that it returns: ``SendProbe``, ``RequestEmbedding``, ``Cut`` (open
the answer from a kept prefix) and ``Reopen`` (continue the trace from one). ``released_chunks``
says how many chunks the client may get. The chunks after a checkpoint are held back while its probe
runs, so that nothing the client has seen is ever cut off; the engine's stream never pauses.

Whatever a policy does wrong sets ``mute_reason``: the stream goes on without the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adjourn.policies.events import EmbeddingFailed, EmbeddingResult, ProbeFailed, ProbeResult
from adjourn.policies.policy import Policy
from adjourn.policies.session.answer_cuts import AnswerCuts, TraceEnd
from adjourn.policies.session.bounds import EndMarker, count_last_chunk
from adjourn.policies.session.consultation import Consultation
from adjourn.policies.session.orders import Cut, Order, SendProbe
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.states import Input, State
from adjourn.policies.session.stream_switch import StreamSwitch
from adjourn.policies.session.trace import ReceivedChunk, Trace
from adjourn.policies.session.trigger import DryRunAction
from adjourn.policies.session.window import CutPoint
from adjourn.policies.text.dialect import TokenizedDialect

__all__ = ["Session"]

_THINKING = State.THINKING  # looking up an Enum's member costs too much for every token


class Session(Trace):
    """A trace under a policy. The methods ``feed`` and ``on_*`` may return an ``Order``.

    ``state`` changes along ``TRANSITIONS`` (its table is in ``states.py``). These machines run
    within it:

    machine       module           what it decides
    ------------  ---------------  -----------------------------------------------------------
    bounds        bounds           where the trace opens and ends in the ids
    window        window           which chunks are held back, where a cut is possible
    checkpoints   checkpoints      where the policy is asked; those deferred by a probe in flight
    consultation  consultation     muted or not; one query in flight, and whether it is worth it
    switch        stream_switch    the order being carried out, and how to undo it
    answers       answer_cuts      whether a trace that ended by itself gets a separate answer

    ``_fast_path``: the next chunk may take the first branch of ``feed`` if it continues the trace
    and has no beginning of a marker, a cue or a fence. Only ``_read_chunk`` sets it. It is never
    true while chunks are held back, and between two calls of ``_read_chunk`` they only get fewer.

    Options: ``observe_only`` records the stop and lets the trace go on; so does ``hold_out``, for
    requests of the holdout arm. ``separate_answer``, ``rescue``: see ``AnswerCuts``. Times are
    seconds of the driver's monotonic clock.
    """

    def __init__(
        self,
        policy: Policy,
        dialect: TokenizedDialect,
        cost_model: ProbeCostModel,
        *,
        observe_only: bool = False,
        hold_out: bool = False,
        separate_answer: bool = False,
        rescue: bool = False,
    ) -> None:
        super().__init__(dialect, policy.needs)
        self.policy = policy
        self._switch = StreamSwitch()
        dry_run: DryRunAction | None = (
            "observed" if observe_only else "held-out" if hold_out else None
        )
        self._consultation = Consultation(policy, cost_model, self._switch, dry_run)
        self._answers = AnswerCuts(separate=separate_answer, rescue=rescue)
        self._fast_path = False
        self._has_no_marker = dialect.matcher.first_ids.isdisjoint
        self._try_skip = self.checkpoints.try_skip

    def on_prompt(self, prompt: Sequence[int]) -> None:
        """The prompt's ids. The last marker among them shows whether a trace is open."""
        self.prompt = prompt
        self.ledger.prompt = len(prompt)
        if self.bounds.is_open_after(prompt):
            self.transition(Input.THINK)

    def feed(
        self,
        reasoning: str,
        token_ids: Sequence[int],
        at: float,
        *,
        answering: bool = False,
        finish_reason: str | None = None,
        logprobs: Sequence[Sequence[float]] = (),
    ) -> Order | None:
        """One chunk of the engine's main stream: its reasoning text and the ids of all its tokens.

        ``answering``: it has answer text or a tool call. ``finish_reason``: it ends the response.
        ``logprobs``: one sequence per token, if the policy needs them.
        """
        state = self.state
        if (
            state is _THINKING
            and self._fast_path
            and not answering
            and finish_reason is None
            and reasoning
            and self._has_no_marker(token_ids)
            and self._try_skip(reasoning)
        ):
            # Nearly every token of a trace ends here.
            self.generated.extend(token_ids)
            self.ledger.reasoning += len(token_ids)
            self.chunk_count = self.released_chunks = self.chunk_count + 1
            self.on_newline = reasoning[-1] == "\n"
            return None
        if state is State.ANSWERING or state is State.DONE:
            self.ledger.answer += len(token_ids)
            self.chunk_count = self.released_chunks = self.chunk_count + 1
            return None
        chunk = ReceivedChunk(reasoning, token_ids, at, answering, finish_reason)
        if state is State.CLOSING or state is State.REOPENING:
            self.chunk_count += 1
            self.ledger.wasted += len(token_ids)
            self._switch.overrun.append(chunk)
            return None
        return self._read_chunk(chunk, logprobs)

    def _read_chunk(
        self, chunk: ReceivedChunk, logprobs: Sequence[Sequence[float]]
    ) -> Order | None:
        """A chunk that may open, continue or end the trace."""
        bounds, window, consultation = self.bounds, self.window, self._consultation
        before = window.partial_start or self.current_point
        self.chunk_count += 1
        self.generated.extend(chunk.ids)
        is_open, marker_state = self.state is not State.OPENING, bounds.marker_state
        opening, end = bounds.scan(chunk.ids, is_open=is_open, is_empty=not self.ledger.reasoning)
        if not is_open and not opening:
            return self._read_before_trace(chunk, before, end)
        if opening:
            kept = len(self.generated) - len(chunk.ids) + opening
            before = replace(before, chunks=self.chunk_count - 1, kept=kept, opening_ids=opening)
            self._open_trace(opening)
        if end or chunk.answering or chunk.finish_reason:
            if (reopen := consultation.try_extend(self, before, end, chunk)) is not None:
                bounds.marker_state = marker_state  # a refusal reads this chunk again
                return reopen
            return self._end_trace(chunk, before, opening, end)
        if chunk.ids and consultation.first_token_at is None:
            consultation.first_token_at = chunk.at
        count = len(chunk.ids) - opening
        window.track_partial(
            chunk.reasoning, before, has_tokens=count > 0, in_marker=bounds.partial_length > 0
        )
        self.ledger.reasoning += count
        if chunk.reasoning:
            self.on_newline = chunk.reasoning[-1] == "\n"
        order = None
        if consultation.is_done(self):
            self.release_all()
        else:
            order = consultation.on_chunk(self, chunk, before, logprobs)
        self._fast_path = (
            self.checkpoints.can_skip
            and not window.held
            and window.partial_start is None
            and not bounds.marker_state
            and consultation.first_token_at is not None
        )
        return order

    def _read_before_trace(
        self, chunk: ReceivedChunk, before: CutPoint, end: EndMarker | None
    ) -> Cut | None:
        """No trace is open. Until there is text, one may still open."""
        is_over = end is not None or chunk.answering or chunk.finish_reason is not None
        has_text = chunk.reasoning and not chunk.reasoning.isspace()
        if has_text and not is_over:
            self.mute("no-marker")  # reasoning without a marker: the model uses another dialect
        if has_text or is_over:
            return self._end_trace(chunk, before, 0, end)
        self.ledger.answer += len(chunk.ids)
        self.window.partial_start = before if self.bounds.partial_length else None
        self.release_all()
        return None

    def _open_trace(self, opening: int) -> None:
        """The marker, and the ids before it, are neither trace nor answer."""
        if self.state is State.OPENING:
            self.transition(Input.THINK)
        self.ledger.marker += self.ledger.answer + opening
        self.ledger.answer = 0

    def _end_trace(
        self, last: ReceivedChunk, before: CutPoint, opening: int, end: EndMarker | None
    ) -> Cut | None:
        """The trace is over, or there was none: release everything, or generate an answer."""
        is_open = self.state is not State.OPENING
        count_last_chunk(
            self.ledger,
            len(last.ids) - opening,
            end,
            is_open=is_open,
            answering=last.answering,
        )
        if last.reasoning:
            self.on_newline = last.reasoning[-1] == "\n"
        ledger_before = replace(self.ledger)
        cut = self._answers.at_trace_end(self, TraceEnd(last, before, end))
        if cut is not None:
            self._switch.begin_answer(cut, ledger_before)
        self.transition(Input.ANSWER if cut is None else Input.STOP)
        self.window.clear()
        self.released_chunks = self.chunk_count if cut is None else before.chunks
        if is_open:
            self._consultation.on_trace_end(self, last)
        return cut

    def on_probe_result(
        self, result: ProbeResult, *, prefilled: int = 0, decoded: int = 0
    ) -> Order | None:
        """A probe's result; counted even if it comes too late. ``prefilled``: prompt tokens that
        the engine's cache did not hold. ``decoded``: tokens decoded, if more than the result has.
        """
        self.ledger.probe += max(len(result.tokens), decoded)
        self.ledger.prefilled += prefilled
        self._consultation.add_probe_time(result.seconds)
        return self._consultation.on_result(self, result)

    def on_probe_failed(self, reason: str, order: SendProbe, at: float) -> Order | None:
        failure = ProbeFailed(order.probe, order.position, reason, at)
        return self._consultation.on_result(self, failure)

    def on_embedding(self, result: EmbeddingResult | EmbeddingFailed) -> Order | None:
        """The embedder's result. Its tokens are in no ledger: they are another model's."""
        return self._consultation.on_result(self, result)

    def on_resumed(self) -> None:
        """The engine streams the answer from the kept prefix; the main stream is aborted."""
        self._switch.finish_cut(self)

    def on_reopened(self, at: float) -> Order | None:
        """The engine continues the trace from the kept prefix.

        The inserted text counts as a chunk; the new stream's chunks are numbered after it.
        """
        inserted = self._switch.finish_reopen(self)
        return self.feed(inserted.text, inserted.ids, at)

    def on_refused(self, reason: str) -> Cut | None:
        """The engine refused a cut or a reopen: the main stream is the response after all.

        If the main stream has reached the trace's own end meanwhile, there may be another cut.
        """
        self.mute(reason)
        return self._feed_again(self._switch.refuse(self))

    def on_ending_in_place(self) -> None:
        """The engine closes the trace in the main stream. What the trace brings until then is the
        client's."""
        self._feed_again(self._switch.finish_in_place(self))

    def _feed_again(self, chunks: list[ReceivedChunk]) -> Cut | None:
        cut = None
        for chunk in chunks:
            order = self.feed(
                chunk.reasoning,
                chunk.ids,
                chunk.at,
                answering=chunk.answering,
                finish_reason=chunk.finish_reason,
            )
            cut = order if isinstance(order, Cut) else cut
        return cut

    def on_answer_tokens(self, tokens: int) -> None:
        """The answer's stream brought so many tokens."""
        self.ledger.answer += tokens

    def on_trace_reclosed(
        self, ids: Sequence[int], discarded_tokens: int, *, client_saw_closing: bool = True
    ) -> None:
        """The answer opened a trace again, which was closed with ``ids``, and a new answer starts.

        ``discarded_tokens`` of the old answer are wasted. ``client_saw_closing``: the client has
        received the first closing sequence.
        """
        self._switch.closing = (*(() if client_saw_closing else self.closing), *ids)
        self.ledger.wasted += discarded_tokens
        self.ledger.closing += len(ids)

    def on_stream_end(self) -> None:
        """The response is over."""
        self.transition(Input.END)
        if not self._switch.main_abandoned:
            self.released_chunks = self.chunk_count

    def abort_pending(self, reason: str) -> None:
        """The driver failed to carry out an order: drop it and let the main stream continue."""
        self.mute(reason)
        self._answers.disable()
        if self.is_switching_stream:
            self.on_refused(reason)
        else:
            self._consultation.continue_trace(self)

    def mute(self, reason: str) -> None:
        """No longer ask the policy; the stream goes on. The first reason stays."""
        self._consultation.mute(reason)

    @property
    def mute_reason(self) -> str | None:
        return self._consultation.mute_reason

    @property
    def policy_error(self) -> Exception | None:
        """The exception that muted the policy."""
        return self._consultation.policy_error

    @property
    def probe_count(self) -> int:
        return self._consultation.probe_count

    @property
    def cue_count(self) -> int:
        return self.checkpoints.cue_count

    @property
    def closing(self) -> tuple[int, ...]:
        """The closing sequence after the kept trace; empty before the first cut."""
        return self._switch.closing

    @property
    def extensions(self) -> int:
        """How many texts were inserted to extend the trace."""
        return self._switch.extensions

    @property
    def rescued_finish_reason(self) -> str | None:
        """The finish reason of a response that ended within its trace and got an answer."""
        return self._switch.rescued_finish_reason

    @property
    def end_bias(self) -> float:
        """Added to the end marker's logit on the main stream, from its first token."""
        return self._consultation.end_bias

    @property
    def next_interval_position(self) -> int:
        """Where the next ``interval`` checkpoint is due, in tokens; 0 if there is none."""
        return self.checkpoints.next_interval_position
