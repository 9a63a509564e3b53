"""Replay policies over recorded traces: with the session of the gateway, and without an engine.

The result of a probe arrives as many seconds after its checkpoint as it took when it was recorded.
Tokens that the stream delivered meanwhile are wasted by a cut, as in the gateway. With ``instant``
results arrive at once, as from an infinitely fast engine.
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
"""Traces times policies. Below, starting processes takes longer than it saves."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one trace under a policy. Token counts are those of the session's ledger.

    ``kept_tokens``: reasoning tokens before the cut, or all. ``full_tokens``: reasoning tokens of
    the uncut trace. ``inexact_probes``: probes whose result was recorded a few tokens earlier;
    ``missing_probes``: those without a recorded result.
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
    """A command that is in progress until ``due_at``, with its recorded result if it has one."""

    due_at: float
    command: SendProbe | RequestEmbedding | Cut
    result: ReplayedResult | None = None


class _Replayer:
    """Drives one session over one recorded trace, as the relay drives it over a stream.

    State: the pending command, at most one; the counts of inexact and missing probes.
    """

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
        # Allowed if the policy observes nothing but checkpoints in the text and their results.
        self._can_merge_chunks = not (
            needs.start or needs.reasoning_chunks or needs.trace_endings or needs.logprobs
        )
        self._pending: _Pending | None = None

    def run(self) -> None:
        session, trace = self.session, self._trace
        session.on_prompt(trace.prompt_token_ids)
        for span in self._spans:
            self._feed_span(span)
            if session.stopped:
                break
        # A log without a finish reason was recorded by a gateway that cut the stream, so what was
        # pending then was completed.
        while self._pending is not None and (
            session.is_switching_stream or trace.finish_reason is None
        ):
            self._complete_command(self._pending)
        session.on_stream_end()

    def _feed_span(self, span: ChunkSpan) -> None:
        """Nearly all chunks have no checkpoint, so many are fed as one while nothing is pending."""
        session, index = self.session, 0
        while index < len(span.feed_arguments) and not session.stopped:
            end = index + 1
            if self._can_merge_chunks and span.is_mergeable and self._pending is None:
                end = max(span.end_before(index, session.next_interval_position or math.inf), end)
            text, ids, at, answering, finish_reason, logprobs = span.merge(index, end)
            index = end
            while self._pending is not None and self._pending.due_at <= at:
                self._complete_command(self._pending)
            if session.stopped:
                return
            command = session.feed(
                text, ids, at, answering=answering, finish_reason=finish_reason, logprobs=logprobs
            )
            if command is not None:
                self._start_command(command, at)

    def _start_command(self, command: Order, at: float) -> None:
        """Start a command. With ``instant`` it is completed before the next chunk."""
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
            delay = 0.0 if self._instant or found is None else found.delay_seconds
            self._pending = _Pending(at + delay, command, found)
        if self._instant:
            self._complete_command(self._pending)

    def _charge_probe(self, found: ReplayedResult) -> None:
        """Count the tokens of a probe that was still in progress at a cut."""
        if isinstance(found.result, ProbeResult):
            self.session.on_probe_result(found.result, decoded=found.decoded_tokens)

    def _complete_command(self, pending: _Pending) -> None:
        self._pending = None
        if isinstance(pending.command, Cut):
            self.session.on_resumed()
            self.session.on_answer_tokens(self._trace.answer_tokens)
        elif (command := self._deliver_result(pending.command, pending)) is not None:
            self._start_command(command, pending.due_at)

    def _deliver_result(
        self, order: SendProbe | RequestEmbedding, pending: _Pending
    ) -> Order | None:
        if pending.result is None:
            self.missing_probes += 1
        else:
            self.inexact_probes += not pending.result.is_exact
        if isinstance(order, RequestEmbedding):
            return self._deliver_embedding(order, pending)
        return self._deliver_probe(order, pending)

    def _deliver_probe(self, order: SendProbe, pending: _Pending) -> Order | None:
        match pending.result:
            case ReplayedResult(result=ProbeResult() as result, decoded_tokens=decoded):
                seconds = 0.0 if self._instant else result.seconds
                result = replace(result, seconds=seconds, at=pending.due_at)
                return self.session.on_probe_result(result, decoded=decoded)
            case ReplayedResult(result=ProbeFailed(reason=reason)):
                return self.session.on_probe_failed(reason, order, pending.due_at)
        return self.session.on_probe_failed("not-recorded", order, pending.due_at)

    def _deliver_embedding(self, order: RequestEmbedding, pending: _Pending) -> Order | None:
        if pending.result is not None and isinstance(
            result := pending.result.result, EmbeddingResult | EmbeddingFailed
        ):
            return self.session.on_embedding(replace(result, at=pending.due_at))
        return self.session.on_embedding(
            EmbeddingFailed(order.embed, order.position, "not-recorded", pending.due_at)
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
    """One trace under one policy. ``cost_model`` carries what it learned from the policy's earlier
    traces. ``resume_seconds``: from a cut to the first token of its answer."""
    session = Session(policy, dialect, cost_model)
    replayer = _Replayer(session, trace, resume_seconds, instant=instant)
    replayer.run()
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
        inexact_probes=replayer.inexact_probes,
        missing_probes=replayer.missing_probes,
    )


def replay_all(policy: Policy, dataset: ReplayDataset, *, instant: bool = False) -> list[Outcome]:
    """Every trace in the order of the file, as one gateway would serve them."""
    dialect, cost_model, resume_seconds = dataset.dialect, ProbeCostModel(), dataset.resume_seconds
    return [
        replay_trace(
            policy, trace, dialect, cost_model, resume_seconds=resume_seconds, instant=instant
        )
        for trace in dataset.traces
    ]


def sweep(
    policies: Sequence[str],
    dataset: ReplayDataset,
    *,
    instant: bool = False,
    workers: int | None = None,
) -> Iterator[list[Outcome]]:
    """The outcomes of each policy, in order. ``workers``: processes; by default one per core."""
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
"""The dataset of this worker process and ``instant``. Each worker reads the file by itself, since a
dataset is too large to send."""


def _init_worker(path: Path, instant: bool) -> None:
    global _worker_state
    _worker_state = ReplayDataset(path), instant


def _replay_in_worker(policy: str) -> list[Outcome]:
    dataset, instant = _worker_state
    return replay_all(parse_policy(policy), dataset, instant=instant)
