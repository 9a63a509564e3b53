"""One request under a policy, by the table in ``policies/states.py``, and nothing that does I/O.

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

from policies.appraisal import Appraiser
from policies.boundaries import Boundary, BoundaryScanner
from policies.cues import Cue, CueScanner
from policies.dialect import Marks
from policies.enclosures import MARKS, Enclosures
from policies.events import (
    Checkpoint,
    CheckpointKind,
    Closing,
    Command,
    Embed,
    Embedded,
    EmbedFailed,
    Event,
    Extend,
    Probe,
    ProbeFailed,
    ProbeResult,
    Question,
    Reply,
    Stop,
    Thought,
    TraceEnd,
)
from policies.graphemes import unfinished
from policies.ledger import Ledger
from policies.looks import Looks
from policies.markers import NOWHERE, Ids, Mark
from policies.never import Never
from policies.orders import Ask, Cut, Order, Reopen, Represent, Said
from policies.policy import Policy, Stopper
from policies.states import TABLE, Input, State

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
    after: int | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece that is not released, or several that no cut can part. ``pieces``, ``start``,
    ``kept`` and ``position`` are what came before: pieces, characters of the trace, generated ids,
    and tokens of the trace. ``opening``: ids that are kept and are in the piece itself, which
    opened the trace. ``inside``: a code fence or a string is open before it."""

    pieces: int
    start: int
    kept: int
    position: int
    on_newline: bool
    inside: bool
    opening: int = 0


@dataclass(frozen=True, slots=True)
class _Fed:
    """What ``feed`` was given, where that decides what becomes of the response."""

    thought: str
    ids: Sequence[int]
    at: float
    answering: bool
    ending: str | None

    @property
    def decides(self) -> bool:
        return self.answering or self.ending is not None


@dataclass(frozen=True, slots=True)
class _End:
    """A marker of ``length`` ids that ends the trace. ``inside``: ids of its last piece that are
    still the trace's, less than none where earlier pieces were the marker's; ``behind``: ids of
    that piece that follow it."""

    mark: Mark
    length: int
    inside: int
    behind: int


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
        marks: Marks,
        appraiser: Appraiser,
        *,
        observe: bool = False,
        hold_out: bool = False,
        apart: bool = False,
        rescue: bool = False,
    ) -> None:
        self.policy = policy
        self.marks = marks
        self.state = State.OPENING
        self.ledger = Ledger()
        self.released = 0
        self.generated: list[int] = []
        self.prompt: Sequence[int] = ()
        self.trigger: Trigger | None = None
        self.muted: str | None = None
        self.error: Exception | None = None
        self.probes = 0
        self.cues = 0
        self._appraiser = appraiser
        self._spare: Literal["observed", "held-out", None] = (
            "observed" if observe else "held-out" if hold_out else None
        )
        self.rescued: str | None = None  # the finish reason that an answer took the place of
        self._apart = apart
        self._rescue = rescue
        self._drawing: Cut | None = None  # is being carried out, and is no trigger's
        self._undone = self.ledger  # what it is again should the engine refuse
        self._given_up = False  # the main stream, for an answer
        self._needs = policy.needs
        needs = self._needs
        # Whether a piece in which no cue begins concerns nobody.
        self._plain = not (needs.start or needs.thoughts or needs.interval or needs.boundaries)
        self._quick = self._plain  # where nothing is open that could be closed
        self._stopper: Stopper = Never()
        try:
            self._stopper = policy.start()
        except Exception as error:
            self._fail(error)
        self._markers = marks.markers
        self._at = NOWHERE  # among the markers
        self._scanner = CueScanner(marks.dialect.cues if needs.cues else (), MARKS)
        self._enclosures = Enclosures()
        self._at_start = needs.start
        self._ends = needs.boundaries
        self._boundaries = BoundaryScanner() if self._ends else None
        self._fed = 0
        self._held: deque[_Piece] = deque()
        self._half: _Piece | None = None  # before ids whose character is not whole yet
        self._begun = ""  # the text of those ids
        self._on_newline = True
        self._next_interval = self._needs.interval
        self._checkpoint = 0  # the position that is being probed
        # The latest of each kind that came beside a probe; None where tokens were due. The kind
        # that waits longest stands first.
        self._unseen: dict[CheckpointKind, Cue | Boundary | None] = {}
        self._looks = Looks(appraiser, needs.series)
        self._probing = False  # whether a probe was worth its price at this checkpoint
        self._began: float | None = None
        self._reopen: Reopen | None = None
        self.extended = 0
        self.closing: tuple[int, ...] = ()  # put behind the kept trace, once there was a cut
        self._overrun: list[_Fed] = []

    # -- what the engine's main stream brings ----------------------------------------------

    def opened(self, prompt: Sequence[int]) -> None:
        """The prompt's ids. The last marker among them tells whether a trace is open."""
        self.prompt = prompt
        self.ledger.prompt = len(prompt)
        if self._markers.last(prompt) is Mark.START:
            self._go(Input.THINK)

    def feed(
        self,
        thought: str,
        token_ids: Sequence[int],
        at: float,
        *,
        answering: bool = False,
        ending: str | None = None,
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
            and self._quick
            and not self._held
            and self._began is not None
            and not answering
            and ending is None
            and thought
            and self._at == NOWHERE
            and self._markers.beginnings.isdisjoint(token_ids)
            and self._scanner.skim(thought)
        ):
            # Nearly every token: no cue, nothing held, nobody to show it to.
            self.generated.extend(token_ids)
            self.ledger.reasoning += len(token_ids)
            self._fed = self.released = self._fed + 1
            self._on_newline = thought[-1] == "\n"
            return None
        if state is State.CLOSING or state is State.REOPENING:
            self._fed += 1
            self.ledger.wasted += len(token_ids)
            self._overrun.append(_Fed(thought, token_ids, at, answering, ending))
            return None
        if state is State.ANSWERING or state is State.DONE:
            self.ledger.answer += len(token_ids)
            self._fed = self.released = self._fed + 1
            return None
        before = self._half or self._here()
        self._fed += 1
        self.generated.extend(token_ids)
        among = self._at
        opening, end = self._scan(token_ids)
        if state is State.OPENING and not opening:
            return self._wait(_Fed(thought, token_ids, at, answering, ending), before, end)
        if opening:
            kept = len(self.generated) - len(token_ids) + opening
            before = replace(before, pieces=self._fed - 1, kept=kept, opening=opening)
            self._open(opening)
        if end or answering or ending:
            last = _Fed(thought, token_ids, at, answering, ending)
            if (reopen := self._extended(before, end, last)) is not None:
                self._at = among  # or a refusal would not read the end again
                return reopen
            return self._leave(last, before, opening, end)
        if token_ids and self._began is None:
            self._began = at
        count = len(token_ids) - opening
        # No trace is cut in the midst of a character, nor where a marker may have begun.
        self._begun += thought
        whole = thought and not self._markers.begun(self._at) and not unfinished(self._begun)
        self._half = None if whole or not count else before
        if self._half is None:
            self._begun = ""
        self.ledger.reasoning += count
        if thought:
            self._on_newline = thought[-1] == "\n"
        if self._unjudged:
            self._let_go()
            return None
        return self._think(thought, token_ids, at, before, logprobs)

    def _scan(self, token_ids: Sequence[int]) -> tuple[int, _End | None]:
        """How many of these ids open the trace, and what ends it: markers that are whole with one
        of them, wherever they began."""
        opening, end = 0, None
        for count, token in enumerate(token_ids, 1):
            self._at = self._markers.step(self._at, token)
            if (found := self._markers.whole(self._at)) is None:
                continue
            mark, length = found
            if mark is not Mark.START:
                end = _End(mark, length, count - opening - length, len(token_ids) - count)
                self._at = NOWHERE
                break
            if self._opens(count == length) and not opening:
                opening, self._at = count, NOWHERE
        return opening, end

    def _opens(self, first: bool) -> bool:
        """Whether a start marker opens the trace here, and is not just a part of it. Some models
        write it once more behind a prompt that ends with it."""
        return self.state is State.OPENING or (first and not self.ledger.reasoning)

    def _wait(self, last: _Fed, before: _Piece, end: _End | None) -> Cut | None:
        """No trace is open. Until there is something to read, one may still be opened."""
        decided = end is not None or last.decides
        reasoning = last.thought and not last.thought.isspace()
        if reasoning and not decided:
            # Reasoning without a marker: not what this dialect says of the model.
            self.mute("no-marker")
        if reasoning or decided:
            return self._leave(last, before, 0, end)
        self.ledger.answer += len(last.ids)
        self._half = before if self._markers.begun(self._at) else None
        self._let_go()
        return None

    def _open(self, opening: int) -> None:
        """A marker, and what stood before it, is neither trace nor answer."""
        if self.state is State.OPENING:
            self._go(Input.THINK)
        self.ledger.marker += self.ledger.answer + opening
        self.ledger.answer = 0

    def _think(
        self,
        thought: str,
        token_ids: Sequence[int],
        at: float,
        before: _Piece,
        logprobs: Sequence[Sequence[float]],
    ) -> Order | None:
        finds = self._find(thought)
        for find in finds:
            self._unseen[find.kind] = find
        if not (self._held and self._held[-1] is before):
            self._held.append(before)
        if self._at_start and thought.strip():
            self._at_start = False
            start = Checkpoint("start", self._place().position, at)
            if (command := self._observe(start)) is not None:
                return command
        if self.state is State.THINKING:
            # What is settled can go, but the piece that a checkpoint stands in can not.
            self._release(finds[0].start if finds else self._settled)
        if self._needs.thoughts:
            told = tuple(tuple(one) for one in logprobs)
            piece = Thought(thought, tuple(token_ids), self.ledger.reasoning, at, told)
            if (command := self._observe(piece)) is not None:
                return command
        if self.state is not State.THINKING:
            if self._unseen and 0 < self._next_interval <= self.ledger.reasoning:
                self._unseen.setdefault("interval")
            return None
        for find in finds:
            if (command := self._look(find, at)) is not None:
                return command
        if finds:
            self._release(self._settled)
        return self._look_if_due(at)

    def _look_if_due(self, at: float) -> Order | None:
        place = self._place()
        if not 0 < self._next_interval <= place.position or place.inside:
            return None
        self._next_interval = place.position + self._needs.interval
        return self._observe(Checkpoint("interval", place.position, at))

    def _look(self, find: Cue | Boundary, at: float) -> Order | None:
        if self._unseen.get(find.kind) is find:
            del self._unseen[find.kind]
        self._release(find.start)
        if self._place().inside:
            return None  # a cut would leave half a program, or half a string
        return self._observe(self._checkpoint_at(find, at))

    def _find(self, thought: str) -> list[Cue | Boundary]:
        """The checkpoints that have become certain, in their order in the text."""
        self._enclosures.feed(thought, self._scanner.length)
        self._quick = self._plain and not self._enclosures.open
        cues = self._scanner.feed(thought)
        self.cues += len(cues)
        if self._boundaries is None:
            return [*cues]
        ends = [end for end in self._boundaries.feed(thought) if end.kind in self._ends]
        return sorted([*ends, *cues], key=attrgetter("start"))

    def _checkpoint_at(self, find: Cue | Boundary, at: float) -> Checkpoint:
        position = self._place().position
        if isinstance(find, Cue):
            return Checkpoint("cue", position, at, cue=find.word)
        return Checkpoint(find.kind, position, at, text=find.text)

    @property
    def _settled(self) -> int:
        """Characters of the trace before which no checkpoint is still to be found."""
        settled = self._scanner.settled
        return settled if self._boundaries is None else min(settled, self._boundaries.settled)

    def _release(self, settled: int) -> None:
        """Let pieces go whose text ends at or before ``settled`` characters of the trace."""
        held = self._held
        # A piece ends where the next begins, and the last one where the text does.
        while len(held) > 1 and held[1].start <= settled:
            held.popleft()
        if held and settled >= self._scanner.length and held[0] is not self._half:
            held.clear()
        self.released = held[0].pieces if held else self._fed

    def _let_go(self) -> None:
        """Nobody looks any more: all that is whole goes out."""
        self._held.clear()
        whole = self._fed if self._half is None else self._half.pieces
        self.released = max(self.released, whole)

    def _leave(self, last: _Fed, before: _Piece, opening: int, end: _End | None) -> Cut | None:
        """The trace is over, or there was none: everything may go, or an answer is drawn."""
        thinking = self.state is not State.OPENING
        self._split_last(len(last.ids) - opening, end, last.answering)
        if last.thought:
            self._on_newline = last.thought[-1] == "\n"
        cut = self._drawing = self._draw(last, before, end)
        self._go(Input.ANSWER if cut is None else Input.STOP)
        self._held.clear()
        self._half = None
        self.released = self._fed if cut is None else before.pieces
        if thinking:
            self._trace_ended(last)
        return cut

    def _split_last(self, count: int, end: _End | None, answering: bool) -> None:
        """Share the ids of the trace's last piece out between trace, marker and answer."""
        ledger = self.ledger
        if self.state is State.OPENING:
            ledger.answer += count
        elif end is not None:
            ledger.reasoning += end.inside
            ledger.answer += count - end.inside
            if end.mark is Mark.END:
                ledger.marker += end.length
                ledger.answer -= end.length
        elif answering:
            ledger.answer += count
        else:
            ledger.reasoning += count

    def _trace_ended(self, last: _Fed) -> None:
        self._pace(last.at)
        if self.stopped:
            return  # in place: the end is not the model's own
        if last.ending != "length":
            self._appraiser.ended(self.ledger.reasoning)
        if self.trigger is not None:
            if last.ending != "length":
                self.trigger.after = self.ledger.reasoning - self.trigger.position
            return
        self._looks.ended()
        if self.muted is None:
            self._observe(TraceEnd(self.ledger.reasoning, last.at))

    # -- an answer that no trigger asked for -------------------------------------------------

    def _draw(self, last: _Fed, before: _Piece, end: _End | None) -> Cut | None:
        """The cut at the trace's own end, where an answer is to be drawn there."""
        if end is not None and end.mark is Mark.BREAK:
            return None  # the engine's parser has begun to read a tool call
        answers = last.answering or last.ending is None or (end is not None and end.behind > 0)
        if self._apart and answers:
            return self._draw_apart(before, end)
        lost = self.state is not State.OPENING and end is None and not last.answering
        if not (self._rescue and lost and last.ending in ("length", "stop")):
            return None
        closing = self._closing(self._here())
        return self._set_aside(before, self._whole(last, before), closing, rescue=last.ending)

    def _draw_apart(self, before: _Piece, end: _End | None) -> Cut:
        if end is None or self.state is State.OPENING:
            return self._set_aside(before, before.kept)
        kept = len(self.generated) - end.behind
        if end.length == 1:
            return self._set_aside(before, kept)
        # The parser may have to see the end of it (harmony's), so the model writes it again.
        kept -= end.length
        return self._set_aside(before, kept, self._closing(self._here()), unmarked=end.length)

    def _whole(self, last: _Fed, before: _Piece) -> int:
        """Ids that are kept of a response that ends in its trace: all that brought text, less the
        beginning of a marker and the end of the sequence."""
        if not last.thought:
            return before.kept
        ended = last.ending == "stop" and bool(last.ids)
        return len(self.generated) - max(ended, self._markers.begun(self._at))

    def _set_aside(
        self,
        before: _Piece,
        kept: int,
        closing: Ids = (),
        *,
        unmarked: int = 0,
        rescue: str | None = None,
    ) -> Cut:
        """What was generated behind the cut is not the client's, unless the engine refuses.
        ``unmarked``: ids of a marker among it."""
        self._undone, ledger = replace(self.ledger), self.ledger
        ledger.wasted += len(self.generated) - kept
        if self.state is State.OPENING:
            ledger.answer = kept
        else:
            ledger.marker -= unmarked
            ledger.reasoning, ledger.answer = kept - ledger.marker, 0
        self.closing = closing
        ledger.closing = len(closing)
        edge = kept - before.kept + before.opening
        return Cut(kept, ledger.reasoning, closing, edge=edge, rescue=rescue)

    # -- what the driver did with a command -------------------------------------------------

    def probed(self, result: ProbeResult, *, prefilled: int = 0, decoded: int = 0) -> Order | None:
        """A probe's result. It is counted even when it came too late. ``decoded``: tokens that it
        took, where those were more than it shows."""
        self.ledger.probe += max(len(result.tokens), decoded)
        self.ledger.prefilled += prefilled
        self._looks.asked(result.seconds)
        return self._answered(result)

    def probe_failed(self, reason: str, ask: Ask, at: float) -> Order | None:
        return self._answered(ProbeFailed(ask.probe, ask.position, reason, at))

    def embedded(self, reply: Embedded | EmbedFailed) -> Order | None:
        """What the embedder said. No ledger holds what it read: that is another model's work."""
        return self._answered(reply)

    def resumed(self) -> None:
        """The answer streams from the kept prefix; the main stream is given up."""
        if self._drawing is not None:
            self.rescued, self._drawing = self._drawing.rescue, None
        else:
            assert self.trigger is not None
            self.trigger.action = "carried-out"
        self._given_up = True
        self._overrun.clear()
        self._go(Input.RESUMED)

    def reopened(self, at: float) -> Order | None:
        """The trace goes on behind what was put into it, which is a piece like any other; those
        that follow are numbered from there on."""
        assert self._reopen is not None
        reopen, self._reopen = self._reopen, None
        del self.generated[reopen.kept :]
        self.ledger.wasted += self.ledger.reasoning - reopen.position
        self.ledger.reasoning = reopen.position
        if self._half is not None and self._held:
            self._held.pop()  # half a character is not kept
        self._half, self._begun, self._at = None, "", NOWHERE
        self._overrun.clear()
        self._fed = reopen.pieces
        self.extended += bool(reopen.said.ids)
        self._go(Input.RESUMED)
        return self.feed(reopen.said.text, reopen.said.ids, at)

    def refused(self, reason: str) -> Cut | None:
        """The engine would not: the main stream is the response after all.

        It may have come to the trace's own end meanwhile, and that may be a cut again.
        """
        drawing, self._drawing = self._drawing, None
        if self.state is State.CLOSING and drawing is None:
            assert self.trigger is not None
            self.trigger.action = "refused"
        self.mute(reason)
        self._go(Input.REFUSED)
        if drawing is not None:
            self._go(Input.ANSWER)
        return self._go_back()

    def closing_in_place(self) -> None:
        """The engine closes the trace in the main stream: all that comes until then is thought,
        and the client's."""
        assert self.trigger is not None
        self.trigger.action = "carried-out"
        self._go(Input.TOLD)
        self._go_back()

    def _go_back(self) -> Cut | None:
        """The main stream is the response, as if nothing had been decided."""
        spent = self.ledger
        self.ledger = replace(self._undone, probe=spent.probe, prefilled=spent.prefilled)
        overrun, self._overrun = self._overrun, []
        self._fed -= len(overrun)
        self._let_go()
        cut = None
        for fed in overrun:
            command = self.feed(
                fed.thought, fed.ids, fed.at, answering=fed.answering, ending=fed.ending
            )
            cut = command if isinstance(command, Cut) else cut
        return cut

    def answered(self, tokens: int) -> None:
        """The resumed stream brought ``tokens`` of the answer."""
        self.ledger.answer += tokens

    def closed_again(self, ids: Sequence[int], lost: int, *, told: bool = True) -> None:
        """The answer opened a trace, which was closed with ``ids``; a new answer goes on, and
        ``lost`` tokens of the old one are nobody's. ``told``: the client has the first closing
        sequence."""
        self.closing = (*(() if told else self.closing), *ids)
        self.ledger.wasted += lost
        self.ledger.closing += len(ids)

    def ended(self) -> None:
        self._go(Input.END)
        if not self._given_up:
            self.released = self._fed

    def give_up(self, reason: str) -> None:
        """The driver failed at a command: whatever is under way is dropped, the stream goes on."""
        self.mute(reason)
        self._apart = self._rescue = False
        if self.waiting:
            self.refused(reason)
        else:
            self._go_on()

    def mute(self, reason: str) -> None:
        """Judge no more; the stream goes on. The first reason stays."""
        if self.muted is None:
            self.muted = reason

    @property
    def waiting(self) -> bool:
        """Whether the end of the main stream is not yet the end: another is being opened."""
        return self.state in (State.CLOSING, State.REOPENING)

    @property
    def bias(self) -> float:
        """What the end marker's logit is raised by on the main stream from the beginning."""
        return self._needs.bias if self._spare is None else 0.0

    @property
    def next_interval(self) -> int:
        """The position of the next checkpoint that is due by tokens; 0 where there is none."""
        return self._next_interval

    @property
    def stopped(self) -> bool:
        return self.trigger is not None and self.trigger.action == "carried-out"

    # -- the policy --------------------------------------------------------------------------

    @property
    def _unjudged(self) -> bool:
        """Whether the policy is asked no more."""
        return self.muted is not None or self.trigger is not None

    def _ask_policy(self, event: Event) -> Command | None:
        if self._unjudged:
            return None
        try:
            command = self._stopper.observe(event)
            if not isinstance(command, Command | None):
                raise TypeError(f"{command!r} is no command")
        except Exception as error:  # whatever a policy does wrong, the stream goes on
            self._fail(error)
            self._go_on()
            return None
        return command

    def _observe(self, event: Event) -> Order | None:
        command = self._ask_policy(event)
        if self.state not in (State.THINKING, State.PROBING):
            return None  # the trace is over: there is nothing to stop any more
        if isinstance(command, Stop):
            if not isinstance(event, ProbeResult | ProbeFailed):
                self._looks.ended()
            return self._stop(command)
        if isinstance(command, Question):
            return self._ask(command, event)
        if isinstance(command, Extend) and isinstance(event, Thought) and self._spare is None:
            return self._reopen_at(self._half or self._here(), command)
        return None

    def _fail(self, error: Exception) -> None:
        self.mute("policy-error")
        self.error = error

    def _answered(self, event: Reply) -> Order | None:
        if self.state is not State.PROBING or event.position != self._checkpoint:
            return None
        command = self._observe(event) if self.muted is None else None
        if isinstance(command, Ask | Represent):
            return command
        if self._probing:
            told = isinstance(event, ProbeResult)
            self._looks.answered(told=told, stopped=self.trigger is not None)
        self._pace(event.at)
        if self.state is State.PROBING:
            self._go_on()
            return self._catch_up(event.at)
        return command

    def _ask(self, question: Question, event: Event) -> Order | None:
        place = self._place()
        if self.state is State.THINKING:
            self._checkpoint, self._probing = place.position, False
        elif not isinstance(event, Reply):
            return None  # one is in flight
        if isinstance(question, Probe) and not self._probing:
            if not self._looks.worth(self._checkpoint):
                return self._observe(ProbeFailed(question, self._checkpoint, "price", event.at))
            self._probing = True
        self._go(Input.PROBE)
        if isinstance(question, Embed):
            return Represent(question, place.kept, self._checkpoint)
        self.probes += 1
        closing = self._closing(place)
        ending = self._markers.through_end(closing) if question.ending else ()
        asked = closing + self.marks.header if question.closing else ()
        return Ask(question, place.kept, self._checkpoint, asked, ending)

    def _extended(self, before: _Piece, end: _End | None, last: _Fed) -> Reopen | None:
        """The piece ends the trace: whether the policy would rather have it go on."""
        closes = self._needs.extends and end is not None and end.mark is Mark.END
        if not closes or self._began is None or self._spare is not None:
            return None
        command = self._ask_policy(Closing(before.position, last.at))
        if not isinstance(command, Extend):
            return None
        self._overrun.append(last)
        reopen = self._reopen_at(before, command)
        del self.generated[len(self.generated) - len(last.ids) :]
        self.ledger.wasted += len(last.ids)
        return reopen

    def _reopen_at(self, place: _Piece, extend: Extend) -> Reopen:
        name = extend.text + ("-on-newline" if place.on_newline else "")
        said = self._text(name) if extend.text else Said()
        self._reopen = Reopen(place.kept, place.position, place.pieces, said, extend.bias)
        self._undone = replace(self.ledger)
        self._go(Input.EXTEND)
        return self._reopen

    def _text(self, name: str) -> Said:
        """A text of the dialect; none where it has none of this name."""
        marks = self.marks
        if name not in marks.inducers:
            return Said()
        return Said(marks.dialect.inducers[name], marks.inducers[name])

    def _stop(self, stop: Stop) -> Cut | None:
        if stop.position is None:
            self._release(self._scanner.length)  # keep everything that was decoded
        place = self._place()
        self.trigger = Trigger(stop, place.position, self._spare or "abandoned")
        if self._spare is not None:
            self._go_on()
            return None
        self._go(Input.STOP)
        self.released = self._held[0].pieces if self._held else self._fed
        self._undone, ledger = replace(self.ledger), self.ledger
        ledger.wasted += ledger.reasoning - place.position
        said = self._text(stop.text)
        ledger.reasoning = place.position + len(said.ids)
        self.closing = self.marks.closing if stop.text else self._closing(place)
        ledger.closing = len(self.closing)
        return Cut(place.kept, place.position, self.closing, said)

    def _place(self) -> _Piece:
        """Where the text that is released ends: there a cut can be made."""
        return self._held[0] if self._held else self._here()

    def _here(self) -> _Piece:
        return _Piece(
            self._fed,
            self._scanner.length,
            len(self.generated),
            self.ledger.reasoning,
            self._on_newline,
            self._enclosures.open,
        )

    def _closing(self, place: _Piece) -> tuple[int, ...]:
        return self.marks.closing_on_newline if place.on_newline else self.marks.closing

    def _go_on(self) -> None:
        if self.state is State.PROBING:
            self._go(Input.GO_ON)
        if self._unjudged and not self.waiting:
            self._let_go()

    def _catch_up(self, at: float) -> Order | None:
        """The probe said no. Of the checkpoints of a kind that came meanwhile the latest is the one
        to look at: all of its prefix is decoded already, and the most is known there. Kinds take
        turns, or one that comes often would have every probe; one whose place was passed over
        keeps its turn."""
        for kind, find in list(self._unseen.items()):
            if find is None:
                del self._unseen[kind]
                self._release(self._settled)
                command = self._look_if_due(at)
            elif find.start >= self._place().start:
                command = self._look(find, at)
            else:
                continue
            if command is not None or self._unjudged:
                return command
        self._release(self._settled)
        return None

    def _pace(self, at: float) -> None:
        if self._began is not None:
            ledger = self.ledger
            self._appraiser.decoded(ledger.reasoning + ledger.wasted, at - self._began)

    def _go(self, signal: Input) -> None:
        self.state = TABLE[self.state][signal]
