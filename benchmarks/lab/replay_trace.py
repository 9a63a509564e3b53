"""Recorded traces prepared for a replay."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from itertools import dropwhile
from pathlib import Path

from adjourn.lab import serialization
from adjourn.lab.chunk_spans import (
    ChunkSpan,
    FeedArguments,
    group_spans,
    no_boundary_test,
    no_cue_test,
)
from adjourn.lab.recorded_results import RecordedResults, TrialAnswer
from adjourn.lab.trace_log import (
    BadTraces,
    CheckpointReached,
    CutExecuted,
    PromptReceived,
    StreamedChunk,
    Trace,
    load,
)
from adjourn.policies.evidence.answers import extract_final_answer
from adjourn.policies.evidence.mathematics import math_equal
from adjourn.policies.never import Never
from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.text.dialect import TokenizedDialect

__all__ = ["ReplayDataset", "ReplayTrace"]


class ReplayTrace:
    """One recorded trace. Does not change after it is made.

    ``feed_arguments``: its chunks as a session takes them. ``spans``: the same chunks, merged where
    none has a cue; ``boundary_spans``: merged where also no sentence, paragraph or step ends.
    ``opening_tokens``: the ids of the opening marker if the model wrote it; no cut removes them.
    ``ledger``: the tokens of the whole trace; ``answer_tokens``: those of its answer. ``results``:
    of probes and embeddings. ``trial_answers``, in the order of positions: the one at a cut is the
    best estimate of the answer that the model would give after it.
    """

    def __init__(self, trace: Trace, dialect: TokenizedDialect) -> None:
        self.prompt_id = trace.prompt_id
        self.sample = trace.sample_index
        self.messages = trace.messages
        self.gold = trace.gold
        self.prompt_token_ids: Sequence[int] = next(
            e.prompt_token_ids for e in trace.events if isinstance(e, PromptReceived)
        )
        self.chunks = [event for event in trace.events if isinstance(event, StreamedChunk)]
        self.checkpoints = [event for event in trace.events if isinstance(event, CheckpointReached)]
        self.executed_cuts = [event for event in trace.events if isinstance(event, CutExecuted)]
        self.feed_arguments: list[FeedArguments] = [
            (c.text, c.token_ids, c.at, c.has_answer, c.finish_reason, c.logprobs)
            for c in self.chunks
        ]
        self._dialect = dialect
        self.ledger, self.opening_tokens = self._count_tokens(dialect)
        self.spans = group_spans(self.feed_arguments, -self.opening_tokens, no_cue_test(dialect))
        self.answer = extract_final_answer("".join(chunk.answer for chunk in self.chunks))
        answer_chunks = dropwhile(lambda chunk: not chunk.has_answer, self.chunks)
        self.answer_tokens = sum(len(chunk.token_ids) for chunk in answer_chunks)
        self.results = RecordedResults(trace.events)
        self.trial_answers = self.results.trial_answers()
        self._trial_positions = [trial.position for trial in self.trial_answers]

    @cached_property
    def boundary_spans(self) -> list[ChunkSpan]:
        """For policies with checkpoints at boundaries; the others replay faster with ``spans``."""
        has_no_cue, has_no_boundary = no_cue_test(self._dialect), no_boundary_test()
        # Both scanners must see every chunk, hence `&`.
        return group_spans(
            self.feed_arguments,
            -self.opening_tokens,
            lambda feed: has_no_cue(feed) & has_no_boundary(feed),
        )

    def _count_tokens(self, dialect: TokenizedDialect) -> tuple[Ledger, int]:
        """The ledger of the uncut trace, and the tokens of its opening marker."""
        session, opening_tokens = Session(Never(), dialect, ProbeCostModel()), 0
        session.on_prompt(self.prompt_token_ids)
        for text, ids, at, answering, finish_reason, _ in self.feed_arguments:
            session.feed(text, ids, at, answering=answering, finish_reason=finish_reason)
            if session.state is State.THINKING:
                opening_tokens = session.ledger.marker
        return session.ledger, opening_tokens

    @property
    def finish_reason(self) -> str | None:
        return next((c.finish_reason for c in reversed(self.chunks) if c.finish_reason), None)

    @property
    def is_complete(self) -> bool:
        """True if the model ended the response by itself. Of a truncated trace neither the full
        length nor the correctness is known."""
        return self.finish_reason not in (None, "length") and any(c.has_answer for c in self.chunks)

    def is_correct(self, answer: str) -> bool:
        """Equal to the gold answer, or to the trace's own answer if there is no gold answer."""
        return math_equal(answer, self.answer if self.gold is None else self.gold)

    def trial_answer_at(self, position: int) -> TrialAnswer:
        """The trial answer at ``position`` or the last one before; an empty one if there is
        none."""
        index = bisect_right(self._trial_positions, position)
        return self.trial_answers[index - 1] if index else TrialAnswer(0, "", 0.0)

    def settled_position(self) -> int | None:
        """The first position from which on every trial answer equals the final answer; None if the
        last trial answer does not."""
        found = None
        for trial in reversed(self.trial_answers):
            if not math_equal(trial.answer, self.answer):
                break
            found = trial.position
        return found


class ReplayDataset:
    """The complete traces of a recording.

    ``truncated_count``: traces that were left out because they are truncated. ``logprob_count``:
    log-probabilities that were recorded with each token. ``has_embeddings``: steps were embedded.
    ``hidden_state_layers``: the layers whose hidden states were recorded. ``resume_seconds``: from
    a cut to the first token of its answer. Raises BadTraces.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, traces = load(path)
        try:
            self.dialect = serialization.from_json_value(self.header.dialect)
            needs = serialization.from_json_value(self.header.needs)
            self.logprob_count = max((one.logprobs for one in needs), default=0)
            self.has_embeddings = any(one.embeddings for one in needs)
            every = [ReplayTrace(trace, self.dialect) for trace in traces]
        except (serialization.BadValue, AttributeError, StopIteration) as error:
            raise BadTraces(f"{path}: {error}") from None
        self.traces = [trace for trace in every if trace.is_complete]
        self.truncated_count = len(every) - len(self.traces)
        if not self.traces:
            raise BadTraces(f"{path} has no trace that the model ended by itself")
        self.hidden_state_layers = frozenset(
            layer for trace in self.traces for layer in trace.results.hidden_state_layers()
        )
        self.resume_seconds = _median_resume_seconds(self.traces)

    def filter(self, predicate: Callable[[ReplayTrace], bool]) -> ReplayDataset:
        """A dataset with the traces for which ``predicate`` holds."""
        subset = copy(self)
        subset.traces = list(filter(predicate, self.traces))
        return subset


def _median_resume_seconds(traces: Sequence[ReplayTrace]) -> float:
    """The median of the executed cuts; without any, the median time of a probe's token."""
    seconds = [cut.first_chunk_seconds for trace in traces for cut in trace.executed_cuts]
    seconds = seconds or [s for trace in traces for s in trace.results.seconds_per_probe_token()]
    return sorted(seconds)[len(seconds) // 2] if seconds else 0.0
