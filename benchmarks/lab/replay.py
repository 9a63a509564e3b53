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

from adjourn.lab.chunk_spans import ChunkSpan
from adjourn.lab.plan import NOT_REPLAYABLE
from adjourn.lab.policy_parser import parse_policy
from adjourn.lab.recorded_results import ReplayedResult
from adjourn.lab.replay_trace import ReplayDataset, ReplayTrace
from adjourn.policies.events import EmbeddingFailed, EmbeddingResult, ProbeFailed, ProbeResult
from adjourn.policies.policy import Policy
from adjourn.policies.registry import BadPolicy
from adjourn.policies.session.orders import Cut, Order, RequestEmbedding, SendProbe
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.text.dialect import TokenizedDialect

__all__ = ["Outcome", "replay_all", "replay_trace", "sweep"]

_MIN_PARALLEL_REPLAYS = 20_000
"""Traces times policies under which processes cost more than they bring."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one trace under a policy. Counts in tokens, as in the session's ledger.

    ``of``: tokens of the whole trace; ``position``: where it ended. ``near`` and ``missing``:
    probes answered from a place close by, and not at all.
    """

    stopped: bool
    kept_tokens: int
    full_tokens: int
    answer: str
    correct: bool
    reason: str
    confidence: float | None
    net_tokens: int
    probe_tokens: int
    wasted_tokens: int
    probe_count: int
    inexact_probes: int
    missing_probes: int


@dataclass(slots=True)
class _Pending:
    """Something that is under way until ``at``."""

    due_at: float
    command: SendProbe | RequestEmbedding | Cut
    result: ReplayedResult | None = None


class _Replayer:
    """Drives one session over one tape, as the relay drives it over a stream."""

    def __init__(
        self, session: Session, trace: ReplayTrace, resume_seconds: float, *, instant: bool
    ) -> None:
        self.session = session
        self.inexact_probes = self.missing_probes = 0
        self._trace = trace
        self._resume_seconds = 0.0 if instant else resume_seconds
        self._instant = instant
        needs = session.policy.needs
        self._spans = trace.boundary_spans if needs.boundary_kinds else trace.spans
        # Whether it looks at nothing but the trace's places, whatever is asked there.
        self._can_merge_chunks = not (
            needs.start or needs.reasoning_chunks or needs.trace_endings or needs.logprobs
        )
        self._pending: _Pending | None = None

    def run(self) -> None:
        session, tape = self.session, self._trace
        session.on_prompt(tape.prompt_token_ids)
        for run in self._spans:
            self._feed_span(run)
            if session.stopped:
                break
        # A log that breaks off (a gateway's own, at its cut) says no more of the stream's end.
        while self._pending is not None and (
            session.is_switching_stream or tape.finish_reason is None
        ):
            self._complete_command(self._pending)
        session.on_stream_end()

    def _feed_span(self, run: ChunkSpan) -> None:
        """Nearly every piece concerns nobody, so where nothing is due many go in as one."""
        session, index = self.session, 0
        while index < len(run.feed_arguments) and not session.stopped:
            end = index + 1
            if self._can_merge_chunks and run.is_mergeable and self._pending is None:
                end = max(run.end_before(index, session.next_interval_position or math.inf), end)
            text, ids, at, answering, ending, logprobs = run.merge(index, end)
            index = end
            while self._pending is not None and self._pending.due_at <= at:
                self._complete_command(self._pending)
            if session.stopped:
                return
            command = session.feed(
                text, ids, at, answering=answering, finish_reason=ending, logprobs=logprobs
            )
            if command is not None:
                self._start_command(command, at)

    def _start_command(self, command: Order, at: float) -> None:
        """Put a command under way. With nothing to wait for, it is done before the next piece."""
        if isinstance(command, Cut):
            if self._pending is not None and self._pending.result is not None:
                self._charge_probe(self._pending.result)
            self._pending = _Pending(at + self._resume_seconds, command)
        elif not isinstance(command, SendProbe | RequestEmbedding):
            raise BadPolicy(f"{self.session.policy.name}: {NOT_REPLAYABLE}")
        else:
            kept, position = command.kept, command.position
            if isinstance(command, SendProbe):
                found = self._trace.results.find_probe(command.probe, kept, position)
            else:
                found = self._trace.results.find_embedding(command.embed, kept, position)
            after = 0.0 if self._instant or found is None else found.delay_seconds
            self._pending = _Pending(at + after, command, found)
        if self._instant:
            self._complete_command(self._pending)

    def _charge_probe(self, found: ReplayedResult) -> None:
        """A probe that a cut did not wait for was sent all the same."""
        if isinstance(found.result, ProbeResult):
            self.session.on_probe_result(found.result, decoded=found.decoded_tokens)

    def _complete_command(self, due: _Pending) -> None:
        self._pending = None
        if isinstance(due.command, Cut):
            self.session.on_resumed()
            self.session.on_answer_tokens(self._trace.answer_tokens)
        elif (command := self._deliver_result(due.command, due)) is not None:
            self._start_command(command, due.due_at)

    def _deliver_result(self, asked: SendProbe | RequestEmbedding, due: _Pending) -> Order | None:
        if due.result is None:
            self.missing_probes += 1
        else:
            self.inexact_probes += not due.result.is_exact
        if isinstance(asked, RequestEmbedding):
            return self._deliver_embedding(asked, due)
        return self._deliver_probe(asked, due)

    def _deliver_probe(self, ask: SendProbe, due: _Pending) -> Order | None:
        match due.result:
            case ReplayedResult(result=ProbeResult() as result, decoded_tokens=decoded):
                seconds = 0.0 if self._instant else result.seconds
                told = replace(result, seconds=seconds, at=due.due_at)
                return self.session.on_probe_result(told, decoded=decoded)
            case ReplayedResult(result=ProbeFailed(reason=reason)):
                return self.session.on_probe_failed(reason, ask, due.due_at)
        return self.session.on_probe_failed("not-recorded", ask, due.due_at)

    def _deliver_embedding(self, represent: RequestEmbedding, due: _Pending) -> Order | None:
        if due.result is not None and isinstance(
            told := due.result.result, EmbeddingResult | EmbeddingFailed
        ):
            return self.session.on_embedding(replace(told, at=due.due_at))
        embed, position = represent.embed, represent.position
        return self.session.on_embedding(
            EmbeddingFailed(embed, position, "not-recorded", due.due_at)
        )


def replay_trace(
    policy: Policy,
    trace: ReplayTrace,
    dialect: TokenizedDialect,
    cost_model: ProbeCostModel,
    *,
    resume_seconds: float = 0.0,
    instant: bool = False,
) -> Outcome:
    """One trace under one policy. ``appraiser`` holds what the policy's earlier traces taught;
    ``resume``: seconds from a cut to its answer's first token."""
    session = Session(policy, dialect, cost_model)
    player = _Replayer(session, trace, resume_seconds, instant=instant)
    player.run()
    ledger, trigger = session.ledger, session.trigger
    answer = trace.answer
    if session.stopped and trigger:
        answer = trace.trial_answer_at(trigger.position).answer
    return Outcome(
        stopped=session.stopped,
        kept_tokens=ledger.reasoning,
        full_tokens=trace.ledger.reasoning,
        answer=answer,
        correct=trace.is_correct(answer),
        reason=trigger.stop.reason if trigger else session.mute_reason or "",
        confidence=trigger.stop.confidence if trigger else None,
        net_tokens=ledger.net,
        probe_tokens=ledger.probe,
        wasted_tokens=ledger.wasted,
        probe_count=session.probe_count,
        inexact_probes=player.inexact_probes,
        missing_probes=player.missing_probes,
    )


def replay_all(policy: Policy, dataset: ReplayDataset, *, instant: bool = False) -> list[Outcome]:
    """Every trace in the order of the file, as one gateway would have served them."""
    marks, appraiser, resume = dataset.dialect, ProbeCostModel(), dataset.resume_seconds
    return [
        replay_trace(policy, tape, marks, appraiser, resume_seconds=resume, instant=instant)
        for tape in dataset.traces
    ]


def sweep(
    policies: Sequence[str],
    dataset: ReplayDataset,
    *,
    instant: bool = False,
    workers: int | None = None,
) -> Iterator[list[Outcome]]:
    """The outcomes of each policy, in order, by as many processes as there are cores."""
    workers = min(workers or os.cpu_count() or 1, len(policies))
    if workers == 1 or len(policies) * len(dataset.traces) < _MIN_PARALLEL_REPLAYS:
        yield from (
            replay_all(parse_policy(policy), dataset, instant=instant) for policy in policies
        )
        return
    with ProcessPoolExecutor(
        workers, get_context("spawn"), _init_worker, (dataset.path, instant)
    ) as pool:
        yield from pool.map(_replay_in_worker, policies)


_worker_state: tuple[ReplayDataset, bool]
"""What this process plays: read once by each, so that nothing big is sent between them."""


def _init_worker(path: Path, instant: bool) -> None:
    global _worker_state
    _worker_state = ReplayDataset(path), instant


def _replay_in_worker(policy: str) -> list[Outcome]:
    tapes, instant = _worker_state
    return replay_all(parse_policy(policy), tapes, instant=instant)
