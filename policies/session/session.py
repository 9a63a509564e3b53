"""One request under a policy, by the table in ``policies/session/states.py``, without any I/O.

A driver (the server, a replay, a test) feeds the session what the engine sent, numbered by pieces,
and carries out what comes back: ``Ask`` (send a probe), ``Represent`` (ask the embedder), ``Cut``
(open the answer from a kept prefix) and ``Reopen`` (go on with the trace from one). ``released``
says how many pieces may go to the client. What stands behind a checkpoint is held back while its
probe runs, so that a cut is never taken back from the client's screen; the engine's stream itself
never pauses.

Everything that a policy does wrong ends in ``muted``: the stream goes on without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

from adjourn.policies.events import (
    Checkpoint,
    CheckpointKind,
    Command,
    Embed,
    EmbeddingFailed,
    EmbeddingResult,
    Event,
    Extend,
    Probe,
    ProbeFailed,
    ProbeResult,
    Query,
    QueryResult,
    ReasoningChunk,
    Stop,
    TraceEnded,
    TraceEnding,
)
from adjourn.policies.never import Never
from adjourn.policies.policy import Policy, Stopper
from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.orders import (
    Cut,
    InsertedText,
    Order,
    Reopen,
    RequestEmbedding,
    SendProbe,
)
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.probe_series import ProbeSeries
from adjourn.policies.session.states import TRANSITIONS, Input, State
from adjourn.policies.text.boundaries import Boundary, BoundaryScanner
from adjourn.policies.text.cues import Cue, CueScanner
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.policies.text.fences import FENCE_CHARS, FenceScanner
from adjourn.policies.text.graphemes import ends_mid_grapheme
from adjourn.policies.text.markers import NO_PARTIAL_MATCH, MarkerKind, TokenIds

__all__ = ["Action", "Session", "Trigger"]


_THINKING = State.THINKING  # asking an Enum for it costs more than a token should

Action = Literal["carried-out", "held-out", "observed", "refused", "abandoned"]


@dataclass(slots=True)
class Trigger:
    """What became of a stop: ``abandoned`` is a cut that the client did not wait for. ``after``:
    tokens thought behind it, where the trace went on to its own end."""

    stop: Stop
    position: int
    action: Action
    tokens_after: int | None = None


@dataclass(frozen=True, slots=True)
class _CutPoint:
    """A piece that is not released, or several that no cut can part. ``pieces``, ``start``,
    ``kept`` and ``position`` are what came before: pieces, characters of the trace, generated ids,
    and tokens of the trace. ``opening``: ids that are kept and are in the piece itself, which
    opened the trace. ``inside``: a code fence or a string is open before it."""

    chunks: int
    text_offset: int
    kept: int
    position: int
    on_newline: bool
    in_fence: bool
    opening_ids: int = 0


@dataclass(frozen=True, slots=True)
class _ReceivedChunk:
    """What ``feed`` was given, where that decides what becomes of the response."""

    reasoning: str
    ids: Sequence[int]
    at: float
    answering: bool
    finish_reason: str | None

    @property
    def ends_reasoning(self) -> bool:
        return self.answering or self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class _EndMarker:
    """A marker of ``length`` ids that ends the trace. ``inside``: ids of its last piece that are
    still the trace's, less than none where earlier pieces were the marker's; ``behind``: ids of
    that piece that follow it."""

    kind: MarkerKind
    length: int
    ids_before: int
    ids_after: int


class Session:
    """Feed it with ``opened``, ``feed``, ``probed``, ``probe_failed``, ``embedded``, ``resumed``,
    ``reopened``, ``refused`` and ``ended``; each may return an ``Order`` to carry out.

    ``hold_out`` lets the trace run on after a trigger, to measure (the policy is muted then);
    ``observe`` does so for every request. ``apart``: the answer is drawn by a call of its own even
    behind a trace that ended by itself. ``rescue``: an answer is drawn where the response would
    end within the trace. Times are seconds of the driver's monotonic clock.
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
        self.policy = policy
        self.dialect = dialect
        self.state = State.OPENING
        self.ledger = Ledger()
        self.released_chunks = 0
        self.generated: list[int] = []
        self.prompt: Sequence[int] = ()
        self.trigger: Trigger | None = None
        self.mute_reason: str | None = None
        self.policy_error: Exception | None = None
        self.probe_count = 0
        self.cue_count = 0
        self._cost_model = cost_model
        self._dry_run_action: Literal["observed", "held-out", None] = (
            "observed" if observe_only else "held-out" if hold_out else None
        )
        self.rescued_finish_reason: str | None = (
            None  # the finish reason that an answer took the place of
        )
        self._separate_answer = separate_answer
        self._rescue = rescue
        self._pending_answer_cut: Cut | None = None  # is being carried out, and is no trigger's
        self._ledger_before = self.ledger  # what it is again should the engine refuse
        self._main_abandoned = False  # the main stream, for an answer
        self._needs = policy.needs
        needs = self._needs
        # Whether a piece in which no cue begins concerns nobody.
        self._needs_only_cues = not (
            needs.start or needs.reasoning_chunks or needs.interval or needs.boundary_kinds
        )
        self._fast_path = self._needs_only_cues  # where nothing is open that could be closed
        self._stopper: Stopper = Never()
        try:
            self._stopper = policy.start()
        except Exception as error:
            self._record_policy_error(error)
        self._markers = dialect.matcher
        self._marker_state = NO_PARTIAL_MATCH  # among the markers
        self._cue_scanner = CueScanner(dialect.definition.cues if needs.cues else (), FENCE_CHARS)
        self._fences = FenceScanner()
        self._start_due = needs.start
        self._boundary_kinds = needs.boundary_kinds
        self._boundary_scanner = BoundaryScanner() if self._boundary_kinds else None
        self._chunk_count = 0
        self._held: deque[_CutPoint] = deque()
        self._partial_start: _CutPoint | None = None  # before ids whose character is not whole yet
        self._partial_char = ""  # the text of those ids
        self._on_newline = True
        self._next_interval_position = self._needs.interval
        self._checkpoint_position = 0  # the position that is being probed
        # The latest of each kind that came beside a probe; None where tokens were due. The kind
        # that waits longest stands first.
        self._deferred_checkpoints: dict[CheckpointKind, Cue | Boundary | None] = {}
        self._probe_series = ProbeSeries(cost_model, needs.min_checkpoints)
        self._probe_approved = False  # whether a probe was worth its price at this checkpoint
        self._first_token_at: float | None = None
        self._pending_reopen: Reopen | None = None
        self.extensions = 0
        self.closing: tuple[int, ...] = ()  # put behind the kept trace, once there was a cut
        self._overrun: list[_ReceivedChunk] = []

    # -- what the engine's main stream brings ----------------------------------------------

    def on_prompt(self, prompt: Sequence[int]) -> None:
        """The prompt's ids. The last marker among them tells whether a trace is open."""
        self.prompt = prompt
        self.ledger.prompt = len(prompt)
        if self._markers.last_kind(prompt) is MarkerKind.START:
            self._transition(Input.THINK)

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
        """One piece: the reasoning text and the ids that it brought, with the ``logprobs`` that
        the policy needs, one sequence a token.

        ``answering``: the piece holds answer text or a tool call. ``ending``: the finish reason,
        where the piece ends the response; one that ends it at a token limit (``"length"``) says
        nothing of how long the trace would have been.
        """
        state = self.state
        if (
            state is _THINKING
            and self._fast_path
            and not self._held
            and self._first_token_at is not None
            and not answering
            and finish_reason is None
            and reasoning
            and self._marker_state == NO_PARTIAL_MATCH
            and self._markers.first_ids.isdisjoint(token_ids)
            and self._cue_scanner.try_skip(reasoning)
        ):
            # Nearly every token: no cue, nothing held, nobody to show it to.
            self.generated.extend(token_ids)
            self.ledger.reasoning += len(token_ids)
            self._chunk_count = self.released_chunks = self._chunk_count + 1
            self._on_newline = reasoning[-1] == "\n"
            return None
        if state is State.CLOSING or state is State.REOPENING:
            self._chunk_count += 1
            self.ledger.wasted += len(token_ids)
            self._overrun.append(_ReceivedChunk(reasoning, token_ids, at, answering, finish_reason))
            return None
        if state is State.ANSWERING or state is State.DONE:
            self.ledger.answer += len(token_ids)
            self._chunk_count = self.released_chunks = self._chunk_count + 1
            return None
        before = self._partial_start or self._current_point()
        self._chunk_count += 1
        self.generated.extend(token_ids)
        among = self._marker_state
        opening, end = self._scan_markers(token_ids)
        if state is State.OPENING and not opening:
            return self._feed_before_trace(
                _ReceivedChunk(reasoning, token_ids, at, answering, finish_reason), before, end
            )
        if opening:
            kept = len(self.generated) - len(token_ids) + opening
            before = replace(before, chunks=self._chunk_count - 1, kept=kept, opening_ids=opening)
            self._open_trace(opening)
        if end or answering or finish_reason:
            last = _ReceivedChunk(reasoning, token_ids, at, answering, finish_reason)
            if (reopen := self._try_extend(before, end, last)) is not None:
                self._marker_state = among  # or a refusal would not read the end again
                return reopen
            return self._end_trace(last, before, opening, end)
        if token_ids and self._first_token_at is None:
            self._first_token_at = at
        count = len(token_ids) - opening
        # No trace is cut in the midst of a character, nor where a marker may have begun.
        self._partial_char += reasoning
        whole = (
            reasoning
            and not self._markers.partial_length(self._marker_state)
            and not ends_mid_grapheme(self._partial_char)
        )
        self._partial_start = None if whole or not count else before
        if self._partial_start is None:
            self._partial_char = ""
        self.ledger.reasoning += count
        if reasoning:
            self._on_newline = reasoning[-1] == "\n"
        if self._is_policy_done:
            self._release_all()
            return None
        return self._feed_trace(reasoning, token_ids, at, before, logprobs)

    def _scan_markers(self, token_ids: Sequence[int]) -> tuple[int, _EndMarker | None]:
        """How many of these ids open the trace, and what ends it: markers that are whole with one
        of them, wherever they began."""
        opening, end = 0, None
        for count, token in enumerate(token_ids, 1):
            self._marker_state = self._markers.advance(self._marker_state, token)
            if (found := self._markers.complete_match(self._marker_state)) is None:
                continue
            mark, length = found
            if mark is not MarkerKind.START:
                end = _EndMarker(mark, length, count - opening - length, len(token_ids) - count)
                self._marker_state = NO_PARTIAL_MATCH
                break
            if self._is_trace_start(count == length) and not opening:
                opening, self._marker_state = count, NO_PARTIAL_MATCH
        return opening, end

    def _is_trace_start(self, first: bool) -> bool:
        """Whether a start marker opens the trace here, and is not just a part of it. Some models
        write it once more behind a prompt that ends with it."""
        return self.state is State.OPENING or (first and not self.ledger.reasoning)

    def _feed_before_trace(
        self, last: _ReceivedChunk, before: _CutPoint, end: _EndMarker | None
    ) -> Cut | None:
        """No trace is open. Until there is something to read, one may still be opened."""
        decided = end is not None or last.ends_reasoning
        reasoning = last.reasoning and not last.reasoning.isspace()
        if reasoning and not decided:
            # Reasoning without a marker: not what this dialect says of the model.
            self.mute("no-marker")
        if reasoning or decided:
            return self._end_trace(last, before, 0, end)
        self.ledger.answer += len(last.ids)
        self._partial_start = before if self._markers.partial_length(self._marker_state) else None
        self._release_all()
        return None

    def _open_trace(self, opening: int) -> None:
        """A marker, and what stood before it, is neither trace nor answer."""
        if self.state is State.OPENING:
            self._transition(Input.THINK)
        self.ledger.marker += self.ledger.answer + opening
        self.ledger.answer = 0

    def _feed_trace(
        self,
        thought: str,
        token_ids: Sequence[int],
        at: float,
        before: _CutPoint,
        logprobs: Sequence[Sequence[float]],
    ) -> Order | None:
        finds = self._find_checkpoints(thought)
        for find in finds:
            self._deferred_checkpoints[find.kind] = find
        if not (self._held and self._held[-1] is before):
            self._held.append(before)
        if self._start_due and thought.strip():
            self._start_due = False
            start = Checkpoint("start", self._cut_point().position, at)
            if (command := self._consult_policy(start)) is not None:
                return command
        if self.state is State.THINKING:
            # What is settled can go, but the piece that a checkpoint stands in can not.
            self._release_until(finds[0].start if finds else self._settled)
        if self._needs.reasoning_chunks:
            told = tuple(tuple(one) for one in logprobs)
            piece = ReasoningChunk(thought, tuple(token_ids), self.ledger.reasoning, at, told)
            if (command := self._consult_policy(piece)) is not None:
                return command
        if self.state is not State.THINKING:
            if (
                self._deferred_checkpoints
                and 0 < self._next_interval_position <= self.ledger.reasoning
            ):
                self._deferred_checkpoints.setdefault("interval")
            return None
        for find in finds:
            if (command := self._visit_checkpoint(find, at)) is not None:
                return command
        if finds:
            self._release_until(self._settled)
        return self._check_interval(at)

    def _check_interval(self, at: float) -> Order | None:
        place = self._cut_point()
        if not 0 < self._next_interval_position <= place.position or place.in_fence:
            return None
        self._next_interval_position = place.position + self._needs.interval
        return self._consult_policy(Checkpoint("interval", place.position, at))

    def _visit_checkpoint(self, find: Cue | Boundary, at: float) -> Order | None:
        if self._deferred_checkpoints.get(find.kind) is find:
            del self._deferred_checkpoints[find.kind]
        self._release_until(find.start)
        if self._cut_point().in_fence:
            return None  # a cut would leave half a program, or half a string
        return self._consult_policy(self._make_checkpoint(find, at))

    def _find_checkpoints(self, thought: str) -> list[Cue | Boundary]:
        """The checkpoints that have become certain, in their order in the text."""
        self._fences.feed(thought, self._cue_scanner.length)
        self._fast_path = self._needs_only_cues and not self._fences.is_open
        cues = self._cue_scanner.feed(thought)
        self.cue_count += len(cues)
        if self._boundary_scanner is None:
            return [*cues]
        ends = [
            end for end in self._boundary_scanner.feed(thought) if end.kind in self._boundary_kinds
        ]
        return sorted([*ends, *cues], key=attrgetter("start"))

    def _make_checkpoint(self, find: Cue | Boundary, at: float) -> Checkpoint:
        position = self._cut_point().position
        if isinstance(find, Cue):
            return Checkpoint("cue", position, at, cue=find.word)
        return Checkpoint(find.kind, position, at, text=find.text)

    @property
    def _settled(self) -> int:
        """Characters of the trace before which no checkpoint is still to be found."""
        settled = self._cue_scanner.settled_length
        return (
            settled
            if self._boundary_scanner is None
            else min(settled, self._boundary_scanner.settled_length)
        )

    def _release_until(self, settled: int) -> None:
        """Let pieces go whose text ends at or before ``settled`` characters of the trace."""
        held = self._held
        # A piece ends where the next begins, and the last one where the text does.
        while len(held) > 1 and held[1].text_offset <= settled:
            held.popleft()
        if held and settled >= self._cue_scanner.length and held[0] is not self._partial_start:
            held.clear()
        self.released_chunks = held[0].chunks if held else self._chunk_count

    def _release_all(self) -> None:
        """Nobody looks any more: all that is whole goes out."""
        self._held.clear()
        whole = self._chunk_count if self._partial_start is None else self._partial_start.chunks
        self.released_chunks = max(self.released_chunks, whole)

    def _end_trace(
        self, last: _ReceivedChunk, before: _CutPoint, opening: int, end: _EndMarker | None
    ) -> Cut | None:
        """The trace is over, or there was none: everything may go, or an answer is drawn."""
        thinking = self.state is not State.OPENING
        self._count_last_chunk(len(last.ids) - opening, end, last.answering)
        if last.reasoning:
            self._on_newline = last.reasoning[-1] == "\n"
        cut = self._pending_answer_cut = self._cut_at_trace_end(last, before, end)
        self._transition(Input.ANSWER if cut is None else Input.STOP)
        self._held.clear()
        self._partial_start = None
        self.released_chunks = self._chunk_count if cut is None else before.chunks
        if thinking:
            self._record_trace_end(last)
        return cut

    def _count_last_chunk(self, count: int, end: _EndMarker | None, answering: bool) -> None:
        """Share the ids of the trace's last piece out between trace, marker and answer."""
        ledger = self.ledger
        if self.state is State.OPENING:
            ledger.answer += count
        elif end is not None:
            ledger.reasoning += end.ids_before
            ledger.answer += count - end.ids_before
            if end.kind is MarkerKind.END:
                ledger.marker += end.length
                ledger.answer -= end.length
        elif answering:
            ledger.answer += count
        else:
            ledger.reasoning += count

    def _record_trace_end(self, last: _ReceivedChunk) -> None:
        self._record_decode_rate(last.at)
        if self.stopped:
            return  # in place: the end is not the model's own
        if last.finish_reason != "length":
            self._cost_model.record_trace_length(self.ledger.reasoning)
        if self.trigger is not None:
            if last.finish_reason != "length":
                self.trigger.tokens_after = self.ledger.reasoning - self.trigger.position
            return
        self._probe_series.finish()
        if self.mute_reason is None:
            self._consult_policy(TraceEnded(self.ledger.reasoning, last.at))

    # -- an answer that no trigger asked for -------------------------------------------------

    def _cut_at_trace_end(
        self, last: _ReceivedChunk, before: _CutPoint, end: _EndMarker | None
    ) -> Cut | None:
        """The cut at the trace's own end, where an answer is to be drawn there."""
        if end is not None and end.kind is MarkerKind.BREAK:
            return None  # the engine's parser has begun to read a tool call
        answers = (
            last.answering or last.finish_reason is None or (end is not None and end.ids_after > 0)
        )
        if self._separate_answer and answers:
            return self._cut_for_separate_answer(before, end)
        lost = self.state is not State.OPENING and end is None and not last.answering
        if not (self._rescue and lost and last.finish_reason in ("length", "stop")):
            return None
        closing = self._closing_at(self._current_point())
        return self._build_answer_cut(
            before, self._count_complete_ids(last, before), closing, rescue=last.finish_reason
        )

    def _cut_for_separate_answer(self, before: _CutPoint, end: _EndMarker | None) -> Cut:
        if end is None or self.state is State.OPENING:
            return self._build_answer_cut(before, before.kept)
        kept = len(self.generated) - end.ids_after
        if end.length == 1:
            return self._build_answer_cut(before, kept)
        # The parser may have to see the end of it (harmony's), so the model writes it again.
        kept -= end.length
        return self._build_answer_cut(
            before, kept, self._closing_at(self._current_point()), unmarked=end.length
        )

    def _count_complete_ids(self, last: _ReceivedChunk, before: _CutPoint) -> int:
        """Ids that are kept of a response that ends in its trace: all that brought text, less the
        beginning of a marker and the end of the sequence."""
        if not last.reasoning:
            return before.kept
        ended = last.finish_reason == "stop" and bool(last.ids)
        return len(self.generated) - max(ended, self._markers.partial_length(self._marker_state))

    def _build_answer_cut(
        self,
        before: _CutPoint,
        kept: int,
        closing: TokenIds = (),
        *,
        unmarked: int = 0,
        rescue: str | None = None,
    ) -> Cut:
        """What was generated behind the cut is not the client's, unless the engine refuses.
        ``unmarked``: ids of a marker among it."""
        self._ledger_before, ledger = replace(self.ledger), self.ledger
        ledger.wasted += len(self.generated) - kept
        if self.state is State.OPENING:
            ledger.answer = kept
        else:
            ledger.marker -= unmarked
            ledger.reasoning, ledger.answer = kept - ledger.marker, 0
        self.closing = closing
        ledger.closing = len(closing)
        edge = kept - before.kept + before.opening_ids
        return Cut(
            kept, ledger.reasoning, closing, unreleased_ids=edge, rescued_finish_reason=rescue
        )

    # -- what the driver did with a command -------------------------------------------------

    def on_probe_result(
        self, result: ProbeResult, *, prefilled: int = 0, decoded: int = 0
    ) -> Order | None:
        """A probe's result. It is counted even when it came too late. ``decoded``: tokens that it
        took, where those were more than it shows."""
        self.ledger.probe += max(len(result.tokens), decoded)
        self.ledger.prefilled += prefilled
        self._probe_series.add_probe_time(result.seconds)
        return self._on_query_result(result)

    def on_probe_failed(self, reason: str, order: SendProbe, at: float) -> Order | None:
        return self._on_query_result(ProbeFailed(order.probe, order.position, reason, at))

    def on_embedding(self, result: EmbeddingResult | EmbeddingFailed) -> Order | None:
        """What the embedder said. No ledger holds what it read: that is another model's work."""
        return self._on_query_result(result)

    def on_resumed(self) -> None:
        """The answer streams from the kept prefix; the main stream is given up."""
        if self._pending_answer_cut is not None:
            self.rescued_finish_reason, self._pending_answer_cut = (
                self._pending_answer_cut.rescued_finish_reason,
                None,
            )
        else:
            assert self.trigger is not None
            self.trigger.action = "carried-out"
        self._main_abandoned = True
        self._overrun.clear()
        self._transition(Input.RESUMED)

    def on_reopened(self, at: float) -> Order | None:
        """The trace goes on behind what was put into it, which is a piece like any other; those
        that follow are numbered from there on."""
        assert self._pending_reopen is not None
        reopen, self._pending_reopen = self._pending_reopen, None
        del self.generated[reopen.kept :]
        self.ledger.wasted += self.ledger.reasoning - reopen.position
        self.ledger.reasoning = reopen.position
        if self._partial_start is not None and self._held:
            self._held.pop()  # half a character is not kept
        self._partial_start, self._partial_char, self._marker_state = None, "", NO_PARTIAL_MATCH
        self._overrun.clear()
        self._chunk_count = reopen.chunks
        self.extensions += bool(reopen.inserted.ids)
        self._transition(Input.RESUMED)
        return self.feed(reopen.inserted.text, reopen.inserted.ids, at)

    def on_refused(self, reason: str) -> Cut | None:
        """The engine would not: the main stream is the response after all.

        It may have come to the trace's own end meanwhile, and that may be a cut again.
        """
        drawing, self._pending_answer_cut = self._pending_answer_cut, None
        if self.state is State.CLOSING and drawing is None:
            assert self.trigger is not None
            self.trigger.action = "refused"
        self.mute(reason)
        self._transition(Input.REFUSED)
        if drawing is not None:
            self._transition(Input.ANSWER)
        return self._rollback()

    def on_ending_in_place(self) -> None:
        """The engine closes the trace in the main stream: all that comes until then is thought,
        and the client's."""
        assert self.trigger is not None
        self.trigger.action = "carried-out"
        self._transition(Input.ENDED_IN_PLACE)
        self._rollback()

    def _rollback(self) -> Cut | None:
        """The main stream is the response, as if nothing had been decided."""
        spent = self.ledger
        self.ledger = replace(self._ledger_before, probe=spent.probe, prefilled=spent.prefilled)
        overrun, self._overrun = self._overrun, []
        self._chunk_count -= len(overrun)
        self._release_all()
        cut = None
        for fed in overrun:
            command = self.feed(
                fed.reasoning,
                fed.ids,
                fed.at,
                answering=fed.answering,
                finish_reason=fed.finish_reason,
            )
            cut = command if isinstance(command, Cut) else cut
        return cut

    def on_answer_tokens(self, tokens: int) -> None:
        """The resumed stream brought ``tokens`` of the answer."""
        self.ledger.answer += tokens

    def on_trace_reclosed(
        self, ids: Sequence[int], discarded_tokens: int, *, client_saw_closing: bool = True
    ) -> None:
        """The answer opened a trace, which was closed with ``ids``; a new answer goes on, and
        ``lost`` tokens of the old one are nobody's. ``told``: the client has the first closing
        sequence."""
        self.closing = (*(() if client_saw_closing else self.closing), *ids)
        self.ledger.wasted += discarded_tokens
        self.ledger.closing += len(ids)

    def on_stream_end(self) -> None:
        self._transition(Input.END)
        if not self._main_abandoned:
            self.released_chunks = self._chunk_count

    def abort_pending(self, reason: str) -> None:
        """The driver failed at a command: whatever is under way is dropped, the stream goes on."""
        self.mute(reason)
        self._separate_answer = self._rescue = False
        if self.is_switching_stream:
            self.on_refused(reason)
        else:
            self._continue_trace()

    def mute(self, reason: str) -> None:
        """Judge no more; the stream goes on. The first reason stays."""
        if self.mute_reason is None:
            self.mute_reason = reason

    @property
    def is_switching_stream(self) -> bool:
        """Whether the end of the main stream is not yet the end: another is being opened."""
        return self.state in (State.CLOSING, State.REOPENING)

    @property
    def end_bias(self) -> float:
        """What the end marker's logit is raised by on the main stream from the beginning."""
        return self._needs.end_bias if self._dry_run_action is None else 0.0

    @property
    def next_interval_position(self) -> int:
        """The position of the next checkpoint that is due by tokens; 0 where there is none."""
        return self._next_interval_position

    @property
    def stopped(self) -> bool:
        return self.trigger is not None and self.trigger.action == "carried-out"

    # -- the policy --------------------------------------------------------------------------

    @property
    def _is_policy_done(self) -> bool:
        """Whether the policy is asked no more."""
        return self.mute_reason is not None or self.trigger is not None

    def _call_policy(self, event: Event) -> Command | None:
        if self._is_policy_done:
            return None
        try:
            command = self._stopper.observe(event)
            if not isinstance(command, Command | None):
                raise TypeError(f"{command!r} is no command")
        except Exception as error:  # whatever a policy does wrong, the stream goes on
            self._record_policy_error(error)
            self._continue_trace()
            return None
        return command

    def _consult_policy(self, event: Event) -> Order | None:
        command = self._call_policy(event)
        if self.state not in (State.THINKING, State.PROBING):
            return None  # the trace is over: there is nothing to stop any more
        if isinstance(command, Stop):
            if not isinstance(event, ProbeResult | ProbeFailed):
                self._probe_series.finish()
            return self._stop(command)
        if isinstance(command, Query):
            return self._start_query(command, event)
        if (
            isinstance(command, Extend)
            and isinstance(event, ReasoningChunk)
            and self._dry_run_action is None
        ):
            return self._reopen_at(self._partial_start or self._current_point(), command)
        return None

    def _record_policy_error(self, error: Exception) -> None:
        self.mute("policy-error")
        self.policy_error = error

    def _on_query_result(self, event: QueryResult) -> Order | None:
        if self.state is not State.PROBING or event.position != self._checkpoint_position:
            return None
        command = self._consult_policy(event) if self.mute_reason is None else None
        if isinstance(command, SendProbe | RequestEmbedding):
            return command
        if self._probe_approved:
            told = isinstance(event, ProbeResult)
            self._probe_series.finish_checkpoint(has_result=told, stopped=self.trigger is not None)
        self._record_decode_rate(event.at)
        if self.state is State.PROBING:
            self._continue_trace()
            return self._process_deferred(event.at)
        return command

    def _start_query(self, question: Query, event: Event) -> Order | None:
        place = self._cut_point()
        if self.state is State.THINKING:
            self._checkpoint_position, self._probe_approved = place.position, False
        elif not isinstance(event, QueryResult):
            return None  # one is in flight
        if isinstance(question, Probe) and not self._probe_approved:
            if not self._probe_series.should_probe(self._checkpoint_position):
                return self._consult_policy(
                    ProbeFailed(question, self._checkpoint_position, "price", event.at)
                )
            self._probe_approved = True
        self._transition(Input.PROBE)
        if isinstance(question, Embed):
            return RequestEmbedding(question, place.kept, self._checkpoint_position)
        self.probe_count += 1
        closing = self._closing_at(place)
        ending = self._markers.trim_after_end(closing) if question.score_end else ()
        asked = closing + self.dialect.header if question.close_trace else ()
        return SendProbe(question, place.kept, self._checkpoint_position, asked, ending)

    def _try_extend(
        self, before: _CutPoint, end: _EndMarker | None, last: _ReceivedChunk
    ) -> Reopen | None:
        """The piece ends the trace: whether the policy would rather have it go on."""
        closes = self._needs.trace_endings and end is not None and end.kind is MarkerKind.END
        if not closes or self._first_token_at is None or self._dry_run_action is not None:
            return None
        command = self._call_policy(TraceEnding(before.position, last.at))
        if not isinstance(command, Extend):
            return None
        self._overrun.append(last)
        reopen = self._reopen_at(before, command)
        del self.generated[len(self.generated) - len(last.ids) :]
        self.ledger.wasted += len(last.ids)
        return reopen

    def _reopen_at(self, place: _CutPoint, extend: Extend) -> Reopen:
        name = extend.text_name + ("-on-newline" if place.on_newline else "")
        said = self._lookup_text(name) if extend.text_name else InsertedText()
        self._pending_reopen = Reopen(
            place.kept, place.position, place.chunks, said, extend.end_bias
        )
        self._ledger_before = replace(self.ledger)
        self._transition(Input.EXTEND)
        return self._pending_reopen

    def _lookup_text(self, name: str) -> InsertedText:
        """A text of the dialect; none where it has none of this name."""
        marks = self.dialect
        if name not in marks.inducers:
            return InsertedText()
        return InsertedText(marks.definition.inducers[name], marks.inducers[name])

    def _stop(self, stop: Stop) -> Cut | None:
        if stop.position is None:
            self._release_until(self._cue_scanner.length)  # keep everything that was decoded
        place = self._cut_point()
        self.trigger = Trigger(stop, place.position, self._dry_run_action or "abandoned")
        if self._dry_run_action is not None:
            self._continue_trace()
            return None
        self._transition(Input.STOP)
        self.released_chunks = self._held[0].chunks if self._held else self._chunk_count
        self._ledger_before, ledger = replace(self.ledger), self.ledger
        ledger.wasted += ledger.reasoning - place.position
        said = self._lookup_text(stop.text_name)
        ledger.reasoning = place.position + len(said.ids)
        self.closing = self.dialect.closing if stop.text_name else self._closing_at(place)
        ledger.closing = len(self.closing)
        return Cut(place.kept, place.position, self.closing, said)

    def _cut_point(self) -> _CutPoint:
        """Where the text that is released ends: there a cut can be made."""
        return self._held[0] if self._held else self._current_point()

    def _current_point(self) -> _CutPoint:
        return _CutPoint(
            self._chunk_count,
            self._cue_scanner.length,
            len(self.generated),
            self.ledger.reasoning,
            self._on_newline,
            self._fences.is_open,
        )

    def _closing_at(self, place: _CutPoint) -> tuple[int, ...]:
        return self.dialect.closing_on_newline if place.on_newline else self.dialect.closing

    def _continue_trace(self) -> None:
        if self.state is State.PROBING:
            self._transition(Input.CONTINUE)
        if self._is_policy_done and not self.is_switching_stream:
            self._release_all()

    def _process_deferred(self, at: float) -> Order | None:
        """The probe said no. Of the checkpoints of a kind that came meanwhile the latest is the one
        to look at: all of its prefix is decoded already, and the most is known there. Kinds take
        turns, or one that comes often would have every probe; one whose place was passed over
        keeps its turn."""
        for kind, find in list(self._deferred_checkpoints.items()):
            if find is None:
                del self._deferred_checkpoints[kind]
                self._release_until(self._settled)
                command = self._check_interval(at)
            elif find.start >= self._cut_point().text_offset:
                command = self._visit_checkpoint(find, at)
            else:
                continue
            if command is not None or self._is_policy_done:
                return command
        self._release_until(self._settled)
        return None

    def _record_decode_rate(self, at: float) -> None:
        if self._first_token_at is not None:
            ledger = self.ledger
            self._cost_model.record_decoding(
                ledger.reasoning + ledger.wasted, at - self._first_token_at
            )

    def _transition(self, signal: Input) -> None:
        self.state = TRANSITIONS[self.state][signal]
