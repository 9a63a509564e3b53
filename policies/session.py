"""One request under a policy: the transition table, and nothing that does I/O.

A driver (the server, a replay, a test) feeds the session what the engine sent, numbered by pieces,
and carries out what comes back: ``Ask`` (send a probe) and ``Cut`` (open the answer from a kept
prefix). ``released`` says how many pieces may go to the client. What stands behind a checkpoint is
held back while its probe runs, so that a cut is never taken back from the client's screen; the
engine's stream itself never pauses.

    state        input      next        what happens
    -----------  ---------  ----------  -----------------------------------------------------
    opening      think      thinking    the prompt's or the output's ids open a trace
    opening      answer     answering   no trace: everything is the answer
    thinking     probe      probing     a checkpoint is held, a probe is on its way
    thinking     stop       closing     a trigger without a probe (budget, loop)
    thinking     answer     answering   the model ended its trace
    probing      probe      probing     a second question at the same checkpoint
    probing      go on      thinking    the probe said no: what was held is released
    probing      stop       closing     the probe said yes
    probing      answer     answering   the model was faster: what was held is released
    closing      resumed    answering   the answer streams from the kept prefix
    closing      refused    thinking    the engine would not: the main stream goes on, unjudged
    any          end        done

Everything that a policy does wrong ends in ``muted``: the stream goes on without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from policies.appraisal import Appraiser
from policies.cues import CueScanner
from policies.dialect import Marks
from policies.events import (
    Checkpoint,
    Event,
    Probe,
    ProbeFailed,
    ProbeResult,
    Stop,
    Thought,
    TraceEnd,
)
from policies.ledger import Ledger
from policies.never import Never
from policies.policy import Policy, Stopper

__all__ = ["TABLE", "Action", "Ask", "Cut", "Input", "Session", "State", "Trigger"]


class State(Enum):
    OPENING = "opening"
    THINKING = "thinking"
    PROBING = "probing"
    CLOSING = "closing"
    ANSWERING = "answering"
    DONE = "done"


class Input(Enum):
    THINK = "think"
    ANSWER = "answer"
    PROBE = "probe"
    GO_ON = "go on"
    STOP = "stop"
    RESUMED = "resumed"
    REFUSED = "refused"
    END = "end"


TABLE: dict[State, dict[Input, State]] = {
    State.OPENING: {Input.THINK: State.THINKING, Input.ANSWER: State.ANSWERING},
    State.THINKING: {
        Input.PROBE: State.PROBING,
        Input.STOP: State.CLOSING,
        Input.ANSWER: State.ANSWERING,
    },
    State.PROBING: {
        Input.PROBE: State.PROBING,
        Input.GO_ON: State.THINKING,
        Input.STOP: State.CLOSING,
        Input.ANSWER: State.ANSWERING,
    },
    State.CLOSING: {Input.RESUMED: State.ANSWERING, Input.REFUSED: State.THINKING},
    State.ANSWERING: {},
    State.DONE: {},
}
for _row in TABLE.values():
    _row[Input.END] = State.DONE

Action = Literal["carried-out", "held-out", "observed", "refused", "abandoned"]


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this probe: the first ``kept`` generated ids, then ``closing``, then the inducer."""

    probe: Probe
    kept: int
    position: int
    closing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Open the answer: the first ``kept`` generated ids, then ``closing``."""

    kept: int
    position: int
    closing: tuple[int, ...]


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
    and tokens of the trace."""

    pieces: int
    start: int
    kept: int
    position: int
    on_newline: bool


class Session:
    """Feed it with ``opened``, ``feed``, ``probed``, ``probe_failed``, ``resumed``, ``refused``
    and ``ended``; each may return an ``Ask`` or a ``Cut`` to carry out.

    ``hold_out`` lets the trace run on after a trigger, to measure (the policy is muted then);
    ``observe`` does so for every request. Times are seconds of the driver's monotonic clock.
    """

    def __init__(
        self,
        policy: Policy,
        marks: Marks,
        appraiser: Appraiser,
        *,
        observe: bool = False,
        hold_out: bool = False,
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
        self._needs = policy.needs
        self._plain = not (self._needs.thoughts or self._needs.interval)
        self._stopper: Stopper = Never()
        try:
            self._stopper = policy.start()
        except Exception as error:
            self._fail(error)
        self._scanner = CueScanner(marks.dialect.cues if self._needs.cues else ())
        self._fed = 0
        self._held: deque[_Piece] = deque()
        self._half: _Piece | None = None  # before ids whose character is not whole yet
        self._on_newline = True
        self._next_interval = self._needs.interval
        self._checkpoint = 0  # the position that is being probed
        self._asked = 0
        self._probe_seconds = 0.0
        self._began: float | None = None
        self._cut_off = 0
        self.closing: tuple[int, ...] = ()  # put behind the kept trace, once there was a cut
        self._overrun: list[tuple[str, Sequence[int], float, bool, str | None]] = []

    # -- what the engine's main stream brings ----------------------------------------------

    def opened(self, prompt: Sequence[int]) -> None:
        """The prompt's ids. The last marker among them tells whether a trace is open."""
        self.prompt = prompt
        self.ledger.prompt = len(prompt)
        for token in reversed(prompt):
            if token == self.marks.start:
                self._go(Input.THINK)
            if token in (self.marks.start, self.marks.end):
                return

    def feed(
        self,
        thought: str,
        token_ids: Sequence[int],
        at: float,
        *,
        answering: bool = False,
        ending: str | None = None,
    ) -> Ask | Cut | None:
        """One piece: the reasoning text and the ids that it brought.

        ``answering``: the piece holds answer text or a tool call. ``ending``: the finish reason,
        where the piece ends the response; one that ends it at a token limit (``"length"``) says
        nothing of how long the trace would have been.
        """
        state = self.state
        if (
            self._quiet
            and state is State.THINKING
            and not answering
            and ending is None
            and thought
            and self.marks.end not in token_ids
            and self._scanner.skim(thought)
        ):
            # Nearly every token: no cue, nothing held, nobody to show it to.
            self.generated.extend(token_ids)
            self.ledger.reasoning += len(token_ids)
            self._fed = self.released = self._fed + 1
            self._on_newline = thought[-1] == "\n"
            return None
        if state is State.CLOSING:
            self._fed += 1
            self.ledger.wasted += len(token_ids)
            self._overrun.append((thought, token_ids, at, answering, ending))
            return None
        if state is State.ANSWERING or state is State.DONE:
            self.ledger.answer += len(token_ids)
            self._fed = self.released = self._fed + 1
            return None
        before = self._half or self._here()
        self._fed += 1
        self.generated.extend(token_ids)
        if state is State.OPENING:
            if token_ids and token_ids[0] == self.marks.start:
                self._go(Input.THINK)
            elif not (token_ids or thought or answering or ending):
                self.released = self._fed  # the role, which tells nothing
                return None
            else:
                if thought and not (answering or ending):
                    # Reasoning without a marker: not what this dialect says of the model.
                    self.mute("no-marker")
                self._leave(token_ids, at, answering, ending)
                return None
        if answering or ending or self.marks.end in token_ids:
            self._leave(token_ids, at, answering, ending)
            return None
        if token_ids and self._began is None:
            self._began = at
        count = len(token_ids)
        if before.kept == 0 and count and token_ids[0] == self.marks.start:
            self.ledger.marker += 1
            count -= 1
            before = replace(before, kept=1)  # no trace is cut before its opening
        self._half = before if count and not thought else None
        self.ledger.reasoning += count
        if thought:
            self._on_newline = thought[-1] == "\n"
        if self.muted is not None or self.trigger is not None:
            self.released = self._fed
            return None
        return self._think(thought, token_ids, at, before)

    @property
    def _quiet(self) -> bool:
        """Whether a piece in which no cue begins concerns nobody."""
        return self._plain and not self._held and self._began is not None

    def _think(
        self, thought: str, token_ids: Sequence[int], at: float, before: _Piece
    ) -> Ask | Cut | None:
        cues = self._scanner.feed(thought)
        self.cues += len(cues)
        if not (self._held and self._held[-1] is before):
            self._held.append(before)
        if self.state is State.THINKING:
            # What is settled can go, but the piece that a new cue begins in can not.
            self._release(cues[0].start if cues else self._scanner.settled)
        if self._needs.thoughts:
            piece = Thought(thought, tuple(token_ids), self.ledger.reasoning, at)
            if (command := self._observe(piece)) is not None:
                return command
        if self.state is not State.THINKING:
            return None
        for cue in cues:
            self._release(cue.start)
            checkpoint = Checkpoint("cue", self._place().position, at, cue.word)
            if (command := self._observe(checkpoint)) is not None:
                return command
        if cues:
            self._release(self._scanner.settled)
        position = self._place().position
        if self._next_interval and position >= self._next_interval:
            self._next_interval = position + self._needs.interval
            return self._observe(Checkpoint("interval", position, at))
        return None

    def _release(self, settled: int) -> None:
        """Let pieces go whose text ends at or before ``settled`` characters of the trace."""
        held = self._held
        # A piece ends where the next begins, and the last one where the text does.
        while len(held) > 1 and held[1].start <= settled:
            held.popleft()
        if held and settled >= self._scanner.length and held[0] is not self._half:
            held.clear()
        self.released = held[0].pieces if held else self._fed

    def _leave(
        self, token_ids: Sequence[int], at: float, answering: bool, ending: str | None
    ) -> None:
        """The trace is over, or there was none: everything may go."""
        thinking = self.state is not State.OPENING
        self._go(Input.ANSWER)
        self.released = self._fed
        self._held.clear()
        if not thinking:
            self.ledger.answer += len(token_ids)
            return
        self._split_last(list(token_ids), answering)
        self._pace(at)
        if ending != "length":
            self._appraiser.ended(self.ledger.reasoning)
        if self.trigger is not None:
            if ending != "length":
                self.trigger.after = self.ledger.reasoning - self.trigger.position
        elif self.muted is None:
            self._observe(TraceEnd(self.ledger.reasoning, at))

    def _split_last(self, ids: list[int], answering: bool) -> None:
        """Share the ids of the trace's last piece out between trace, markers and answer."""
        ledger = self.ledger
        if len(self.generated) == len(ids) and ids and ids[0] == self.marks.start:
            ledger.marker += 1
            ids = ids[1:]
        if self.marks.end in ids:
            inside = ids.index(self.marks.end)
            ledger.reasoning += inside
            ledger.marker += 1
            ledger.answer += len(ids) - inside - 1
        elif answering:
            ledger.answer += len(ids)
        else:
            ledger.reasoning += len(ids)

    # -- what the driver did with a command -------------------------------------------------

    def probed(self, result: ProbeResult, *, prefilled: int = 0) -> Ask | Cut | None:
        """A probe's result. It is counted even when it came too late."""
        self.ledger.probe += len(result.tokens)
        self.ledger.prefilled += prefilled
        self._probe_seconds += result.seconds
        return self._answered(result)

    def probe_failed(self, reason: str, ask: Ask, at: float) -> Ask | Cut | None:
        return self._answered(ProbeFailed(ask.probe, ask.position, reason, at))

    def resumed(self) -> None:
        """The answer streams from the kept prefix; the main stream is given up."""
        assert self.trigger is not None
        self.trigger.action = "carried-out"
        self._overrun.clear()
        self._go(Input.RESUMED)

    def refused(self, reason: str) -> None:
        """The engine would not resume from the prefix: the main stream is the answer after all."""
        assert self.trigger is not None
        self.trigger.action = "refused"
        self.ledger.reasoning += self._cut_off
        self.ledger.closing = self.ledger.wasted = 0
        self.mute(reason)
        self._go(Input.REFUSED)
        self._held.clear()
        overrun, self._overrun = self._overrun, []
        self._fed -= len(overrun)
        self.released = self._fed
        for thought, ids, at, answering, ending in overrun:
            self.feed(thought, ids, at, answering=answering, ending=ending)

    def answered(self, tokens: int) -> None:
        """The resumed stream brought ``tokens`` of the answer."""
        self.ledger.answer += tokens

    def ended(self) -> None:
        self._go(Input.END)
        if not self.stopped:
            self.released = self._fed

    def give_up(self, reason: str) -> None:
        """The driver failed at a command: whatever is under way is dropped, the stream goes on."""
        self.mute(reason)
        if self.state is State.CLOSING:
            self.refused(reason)
        else:
            self._go_on()

    def mute(self, reason: str) -> None:
        """Judge no more; the stream goes on. The first reason stays."""
        if self.muted is None:
            self.muted = reason

    @property
    def waiting(self) -> bool:
        """Whether the end of the main stream is not yet the end: a cut is being carried out."""
        return self.state is State.CLOSING

    @property
    def next_interval(self) -> int:
        """The position of the next checkpoint that is due by tokens; 0 where there is none."""
        return self._next_interval

    @property
    def stopped(self) -> bool:
        return self.trigger is not None and self.trigger.action == "carried-out"

    # -- the policy --------------------------------------------------------------------------

    def _observe(self, event: Event) -> Ask | Cut | None:
        if self.muted is not None or self.trigger is not None:
            return None
        try:
            command = self._stopper.observe(event)
            if not isinstance(command, Probe | Stop | None):
                raise TypeError(f"{command!r} is no command")
        except Exception as error:  # whatever a policy does wrong, the stream goes on
            self._fail(error)
            self._go_on()
            return None
        if self.state not in (State.THINKING, State.PROBING):
            return None  # the trace is over: there is nothing to stop any more
        if isinstance(command, Stop):
            return self._stop(command)
        if isinstance(command, Probe):
            return self._ask(command, event)
        return None

    def _fail(self, error: Exception) -> None:
        self.mute("policy-error")
        self.error = error

    def _answered(self, event: ProbeResult | ProbeFailed) -> Ask | Cut | None:
        if self.state is not State.PROBING or event.position != self._checkpoint:
            return None
        command = self._observe(event) if self.muted is None else None
        if isinstance(command, Ask):
            return command
        if isinstance(event, ProbeResult) or self._probe_seconds:
            self._appraiser.probed(
                self._probe_seconds, self._asked, stopped=self.trigger is not None
            )
            self._asked += 1
        self._pace(event.at)
        if self.state is State.PROBING:
            self._go_on()
        return command

    def _ask(self, probe: Probe, event: Event) -> Ask | Cut | None:
        place = self._place()
        if self.state is State.THINKING:
            position = place.position
            if not self._appraiser.worth(position, self._asked):
                return self._observe(ProbeFailed(probe, position, "price", event.at))
            self._checkpoint = position
            self._probe_seconds = 0.0
        elif not isinstance(event, ProbeResult | ProbeFailed):
            return None  # one is in flight
        self._go(Input.PROBE)
        self.probes += 1
        return Ask(probe, place.kept, self._checkpoint, self._closing(place))

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
        self._cut_off = self.ledger.reasoning - place.position
        self.ledger.wasted += self._cut_off
        self.ledger.reasoning = place.position
        self.closing = self._closing(place)
        self.ledger.closing = len(self.closing)
        return Cut(place.kept, place.position, self.closing)

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
        )

    def _closing(self, place: _Piece) -> tuple[int, ...]:
        return self.marks.closing_on_newline if place.on_newline else self.marks.closing

    def _go_on(self) -> None:
        if self.state is State.PROBING:
            self._go(Input.GO_ON)
        if self.muted is not None or self.trigger is not None:
            self._held.clear()
            self.released = self._fed
        else:
            self._release(self._scanner.settled)

    def _pace(self, at: float) -> None:
        if self._began is not None:
            ledger = self.ledger
            self._appraiser.decoded(ledger.reasoning + ledger.wasted, at - self._began)

    def _go(self, signal: Input) -> None:
        self.state = TABLE[self.state][signal]
