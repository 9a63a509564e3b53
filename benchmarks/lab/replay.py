"""Play policies over recorded traces: the gateway's own session, and no engine.

A probe's result comes when it came: as many seconds behind its checkpoint as it took when it was
recorded, so that what the stream brought meanwhile is wasted at a cut, as in the gateway.
``instant`` brings it at once, which is what a perfect engine would do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks.lab.plan import LED_ELSEWHERE
from benchmarks.lab.probes import parse
from benchmarks.lab.tape import Found, Run, Tape, Tapes
from policies.appraisal import Appraiser
from policies.dialect import Marks
from policies.events import Embedded, EmbedFailed, ProbeFailed, ProbeResult
from policies.orders import Ask, Cut, Order, Represent
from policies.policy import Policy
from policies.registry import BadPolicy
from policies.session import Session

__all__ = ["Outcome", "play", "play_all", "sweep"]

_WORTH_A_POOL = 20_000
"""Traces times policies under which processes cost more than they bring."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one trace under a policy. Counts in tokens, as in the session's ledger.

    ``of``: tokens of the whole trace; ``position``: where it ended. ``near`` and ``missing``:
    probes answered from a place close by, and not at all.
    """

    stopped: bool
    position: int
    of: int
    answer: str
    right: bool
    reason: str
    confidence: float | None
    net: int
    probe: int
    wasted: int
    probes: int
    near: int
    missing: int


@dataclass(slots=True)
class _Due:
    """Something that is under way until ``at``."""

    at: float
    command: Ask | Represent | Cut
    found: Found | None = None


class _Player:
    """Drives one session over one tape, as the relay drives it over a stream."""

    def __init__(self, session: Session, tape: Tape, resume: float, *, instant: bool) -> None:
        self.session = session
        self.near = self.missing = 0
        self._tape = tape
        self._resume = 0.0 if instant else resume
        self._instant = instant
        needs = session.policy.needs
        self._runs = tape.fine_runs if needs.boundaries else tape.runs
        # Whether it looks at nothing but the trace's places, whatever is asked there.
        self._leaps = not (needs.start or needs.thoughts or needs.extends or needs.logprobs)
        self._due: _Due | None = None

    def run(self) -> None:
        session, tape = self.session, self._tape
        session.opened(tape.opened)
        for run in self._runs:
            self._feed(run)
            if session.stopped:
                break
        # A log that breaks off (a gateway's own, at its cut) says no more of the stream's end.
        while self._due is not None and (session.waiting or tape.ending is None):
            self._arrive(self._due)
        session.ended()

    def _feed(self, run: Run) -> None:
        """Nearly every piece concerns nobody, so where nothing is due many go in as one."""
        session, index = self.session, 0
        while index < len(run.feeds) and not session.stopped:
            end = index + 1
            if self._leaps and run.plain and self._due is None:
                end = max(run.upto(index, session.next_interval or math.inf), end)
            text, ids, at, answering, ending, logprobs = run.merged(index, end)
            index = end
            while self._due is not None and self._due.at <= at:
                self._arrive(self._due)
            if session.stopped:
                return
            command = session.feed(
                text, ids, at, answering=answering, ending=ending, logprobs=logprobs
            )
            if command is not None:
                self._order(command, at)

    def _order(self, command: Order, at: float) -> None:
        """Put a command under way. With nothing to wait for, it is done before the next piece."""
        if isinstance(command, Cut):
            if self._due is not None and self._due.found is not None:
                self._pay(self._due.found)
            self._due = _Due(at + self._resume, command)
        elif not isinstance(command, Ask | Represent):
            raise BadPolicy(f"{self.session.policy.name}: {LED_ELSEWHERE}")
        else:
            kept, position = command.kept, command.position
            if isinstance(command, Ask):
                found = self._tape.find(command.probe, kept, position)
            else:
                found = self._tape.embedded(command.embed, kept, position)
            after = 0.0 if self._instant or found is None else found.after
            self._due = _Due(at + after, command, found)
        if self._instant:
            self._arrive(self._due)

    def _pay(self, found: Found) -> None:
        """A probe that a cut did not wait for was sent all the same."""
        if isinstance(found.result, ProbeResult):
            self.session.probed(found.result, decoded=found.decoded)

    def _arrive(self, due: _Due) -> None:
        self._due = None
        if isinstance(due.command, Cut):
            self.session.resumed()
            self.session.answered(self._tape.answer_tokens)
        elif (command := self._answer(due.command, due)) is not None:
            self._order(command, due.at)

    def _answer(self, asked: Ask | Represent, due: _Due) -> Order | None:
        if due.found is None:
            self.missing += 1
        else:
            self.near += not due.found.exact
        if isinstance(asked, Represent):
            return self._embedded(asked, due)
        return self._probed(asked, due)

    def _probed(self, ask: Ask, due: _Due) -> Order | None:
        match due.found:
            case Found(result=ProbeResult() as result, decoded=decoded):
                seconds = 0.0 if self._instant else result.seconds
                told = replace(result, seconds=seconds, at=due.at)
                return self.session.probed(told, decoded=decoded)
            case Found(result=ProbeFailed(reason=reason)):
                return self.session.probe_failed(reason, ask, due.at)
        return self.session.probe_failed("not-recorded", ask, due.at)

    def _embedded(self, represent: Represent, due: _Due) -> Order | None:
        if due.found is not None and isinstance(told := due.found.result, Embedded | EmbedFailed):
            return self.session.embedded(replace(told, at=due.at))
        embed, position = represent.embed, represent.position
        return self.session.embedded(EmbedFailed(embed, position, "not-recorded", due.at))


def play(
    policy: Policy,
    tape: Tape,
    marks: Marks,
    appraiser: Appraiser,
    *,
    resume: float = 0.0,
    instant: bool = False,
) -> Outcome:
    """One trace under one policy. ``appraiser`` holds what the policy's earlier traces taught;
    ``resume``: seconds from a cut to its answer's first token."""
    session = Session(policy, marks, appraiser)
    player = _Player(session, tape, resume, instant=instant)
    player.run()
    ledger, trigger = session.ledger, session.trigger
    answer = tape.answer
    if session.stopped and trigger:
        answer = tape.trial(trigger.position).answer
    return Outcome(
        stopped=session.stopped,
        position=ledger.reasoning,
        of=tape.ledger.reasoning,
        answer=answer,
        right=tape.right(answer),
        reason=trigger.stop.reason if trigger else session.muted or "",
        confidence=trigger.stop.confidence if trigger else None,
        net=ledger.net,
        probe=ledger.probe,
        wasted=ledger.wasted,
        probes=session.probes,
        near=player.near,
        missing=player.missing,
    )


def play_all(policy: Policy, tapes: Tapes, *, instant: bool = False) -> list[Outcome]:
    """Every trace in the order of the file, as one gateway would have served them."""
    marks, appraiser, resume = tapes.marks, Appraiser(), tapes.resume
    return [
        play(policy, tape, marks, appraiser, resume=resume, instant=instant) for tape in tapes.tapes
    ]


def sweep(
    policies: Sequence[str], tapes: Tapes, *, instant: bool = False, workers: int | None = None
) -> Iterator[list[Outcome]]:
    """The outcomes of each policy, in order, by as many processes as there are cores."""
    workers = min(workers or os.cpu_count() or 1, len(policies))
    if workers == 1 or len(policies) * len(tapes.tapes) < _WORTH_A_POOL:
        yield from (play_all(parse(policy), tapes, instant=instant) for policy in policies)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _load, (tapes.path, instant)) as pool:
        yield from pool.map(_play_here, policies)


_here: tuple[Tapes, bool]
"""What this process plays: read once by each, so that nothing big is sent between them."""


def _load(path: Path, instant: bool) -> None:
    global _here
    _here = Tapes(path), instant


def _play_here(policy: str) -> list[Outcome]:
    tapes, instant = _here
    return play_all(parse(policy), tapes, instant=instant)
