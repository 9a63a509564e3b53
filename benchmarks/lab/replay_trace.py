"""A recorded trace, made ready to be played: the pieces in order, and what was drawn where."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, chain, dropwhile, groupby
from pathlib import Path
from typing import Any

from adjourn.lab import serialization
from adjourn.lab.embedding_client import unpack_vector
from adjourn.lab.plan import probe_kind
from adjourn.lab.trace_log import (
    BadTraces,
    CheckpointReached,
    CutExecuted,
    EmbeddingCompleted,
    ProbeCompleted,
    PromptReceived,
    StreamedChunk,
    Trace,
    load,
)
from adjourn.policies.events import (
    Embed,
    EmbeddingFailed,
    EmbeddingResult,
    Probe,
    ProbeFailed,
    ProbeResult,
    QueryResult,
)
from adjourn.policies.evidence.answers import (
    answer_confidence,
    extract_final_answer,
    extract_trial_answer,
)
from adjourn.policies.evidence.hidden_states import Layer
from adjourn.policies.evidence.mathematics import math_equal
from adjourn.policies.never import Never
from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.session import Session
from adjourn.policies.session.states import State
from adjourn.policies.text.boundaries import BoundaryScanner
from adjourn.policies.text.cues import CueScanner
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.policies.text.markers import NO_PARTIAL_MATCH

__all__ = [
    "MAX_PROBE_OFFSET",
    "ChunkSpan",
    "FeedArguments",
    "ReplayDataset",
    "ReplayTrace",
    "ReplayedResult",
    "TrialAnswer",
]

MAX_PROBE_OFFSET = 32
"""Tokens: what was drawn so little before a place stands in for what was not drawn there."""
Logprobs = tuple[tuple[float, ...], ...]
FeedArguments = tuple[str, tuple[int, ...], float, bool, str | None, Logprobs]
"""A piece as a session takes it: text, ids, time, whether it answers, the finish reason, and the
log-probabilities of its tokens."""


@dataclass(frozen=True, slots=True)
class ReplayedResult:
    """What a question would have brought. ``after``: seconds from the checkpoint to the result.
    ``exact``: it was drawn at this very place. ``decoded``: tokens that it took."""

    result: QueryResult
    delay_seconds: float
    is_exact: bool
    decoded_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """The trial answer at a place, and how sure of it the model was, in [0, 1]."""

    position: int
    answer: str
    confidence: float


class ChunkSpan:
    """Pieces of the thinking behind one another in none of which there is a place to look.
    ``ends``: the positions up to which they go. ``plain``: more than one, so that they may be fed
    as one where nothing else is due."""

    def __init__(self, feed_arguments: list[FeedArguments], start_position: int) -> None:
        self.feed_arguments = feed_arguments
        self.end_positions = list(
            accumulate((len(feed[1]) for feed in feed_arguments), initial=start_position)
        )[1:]
        self.is_mergeable = len(feed_arguments) > 1
        self._text = "".join(feed[0] for feed in feed_arguments)
        self._ids = tuple(chain.from_iterable(feed[1] for feed in feed_arguments))

    def end_before(self, begin: int, position: float) -> int:
        """The end of the pieces from ``begin`` on that end before ``position``."""
        return (
            len(self.feed_arguments)
            if self.end_positions[-1] < position
            else bisect_left(self.end_positions, position, begin)
        )

    def merge(self, begin: int, end: int) -> FeedArguments:
        """These pieces as one; several are told without log-probabilities."""
        if end - begin == 1:
            return self.feed_arguments[begin]
        at = self.feed_arguments[end - 1][2]
        if end - begin == len(self.feed_arguments):
            return self._text, self._ids, at, False, None, ()
        part = self.feed_arguments[begin:end]
        ids = tuple(chain.from_iterable(feed[1] for feed in part))
        return "".join(feed[0] for feed in part), ids, at, False, None, ()


@dataclass(frozen=True, slots=True)
class _RecordedProbe:
    kept: int
    delay_seconds: float
    result: ProbeResult | ProbeFailed
    decoded_tokens: int


class ReplayTrace:
    """One trace. ``feeds`` are its pieces as a session takes them, ``runs`` the same put together
    where no cue is among them, ``fine_runs`` where nothing ends among them either. ``opening`` are
    the ids of the opening marker, where the model wrote it, which no cut takes away; ``ledger`` is
    what the whole trace cost, ``answer_tokens`` what its answer did. ``trials`` are its places'
    trial answers, by position: the one at a cut is the best estimate of what would have been
    answered there."""

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
        self._embeddings = sorted(
            (event for event in trace.events if isinstance(event, EmbeddingCompleted)),
            key=lambda event: event.kept,
        )
        self.feed_arguments: list[FeedArguments] = [
            (p.text, p.token_ids, p.at, p.has_answer, p.finish_reason, p.logprobs)
            for p in self.chunks
        ]
        self.opening_tokens = 0
        self._dialect = dialect
        self.ledger = self._full_ledger(dialect)
        self.spans = self._group_spans(_make_cue_free_test(dialect))
        self.answer = extract_final_answer("".join(piece.answer for piece in self.chunks))
        behind = dropwhile(lambda piece: not piece.has_answer, self.chunks)
        self.answer_tokens = sum(len(piece.token_ids) for piece in behind)
        self._probes = self._index_probes(
            event for event in trace.events if isinstance(event, ProbeCompleted)
        )
        self.trial_answers = self._extract_trial_answers()
        self._trial_positions = [trial.position for trial in self.trial_answers]

    @cached_property
    def boundary_spans(self) -> list[ChunkSpan]:
        """Made for policies that look at ends; the others go faster without."""
        cueless, endless = _make_cue_free_test(self._dialect), _make_boundary_free_test()
        return self._group_spans(lambda feed: cueless(feed) & endless(feed))

    def _group_spans(self, together: Callable[[FeedArguments], bool]) -> list[ChunkSpan]:
        runs, position = list[ChunkSpan](), -self.opening_tokens
        for plain, group in groupby(self.feed_arguments, together):
            for feeds in [list(group)] if plain else [[feed] for feed in group]:
                runs.append(ChunkSpan(feeds, position))
                position = runs[-1].end_positions[-1]
        return runs

    def _full_ledger(self, marks: TokenizedDialect) -> Ledger:
        session = Session(Never(), marks, ProbeCostModel())
        session.on_prompt(self.prompt_token_ids)
        for text, ids, at, answering, ending, _ in self.feed_arguments:
            session.feed(text, ids, at, answering=answering, finish_reason=ending)
            if session.state is State.THINKING:
                self.opening_tokens = session.ledger.marker
        return session.ledger

    @staticmethod
    def _index_probes(drawn: Iterable[ProbeCompleted]) -> dict[Probe, list[_RecordedProbe]]:
        """Draws by probe, whatever its length; each list in the order of its places."""
        draws = defaultdict(list)
        for event in drawn:
            result = serialization.from_json_value(event.result)
            draw = _RecordedProbe(
                event.kept, event.at - event.sent_at, result, event.decoded_tokens
            )
            draws[probe_kind(result.probe)].append(draw)
        return {like: sorted(found, key=lambda draw: draw.kept) for like, found in draws.items()}

    def _extract_trial_answers(self) -> list[TrialAnswer]:
        results = (draw.result for draw in self._probes.get(probe_kind(Probe()), []))
        return [
            TrialAnswer(
                r.position, extract_trial_answer(r.text), answer_confidence(r.tokens, r.logprobs)
            )
            for r in results
            if isinstance(r, ProbeResult)
        ]

    @property
    def finish_reason(self) -> str | None:
        return next((p.finish_reason for p in reversed(self.chunks) if p.finish_reason), None)

    @property
    def is_complete(self) -> bool:
        """Whether the model came to its own end. A truncated trace tells nothing of how long it
        would have been, nor whether it would have been right."""
        return self.finish_reason not in (None, "length") and any(p.has_answer for p in self.chunks)

    def is_correct(self, answer: str) -> bool:
        """Against the gold answer; without one, against the trace's own."""
        return math_equal(answer, self.answer if self.gold is None else self.gold)

    def trial_answer_at(self, position: int) -> TrialAnswer:
        """The one at ``position``, or at the last place before it; an empty one before all."""
        index = bisect_right(self._trial_positions, position)
        return self.trial_answers[index - 1] if index else TrialAnswer(0, "", 0.0)

    def settled_position(self) -> int | None:
        """The position of the first place from which the trial answer is the final one for good."""
        found = None
        for trial in reversed(self.trial_answers):
            if not math_equal(trial.answer, self.answer):
                break
            found = trial.position
        return found

    @property
    def hidden_state_layers(self) -> frozenset[Layer]:
        """Those behind which hidden states were told."""
        results = (draw.result for draw in chain.from_iterable(self._probes.values()))
        states = (r.hidden_states for r in results if isinstance(r, ProbeResult))
        return frozenset(
            Layer(number, one.width) for one in states if one is not None for number in one.layers
        )

    def seconds_per_probe_token(self) -> list[float]:
        """Seconds a drawn token, of each probe."""
        every = chain.from_iterable(self._probes.values())
        drawn = ((draw.delay_seconds, draw.result) for draw in every)
        return [t / len(r.tokens) for t, r in drawn if isinstance(r, ProbeResult) and r.tokens]

    def find_probe(self, probe: Probe, kept: int, position: int) -> ReplayedResult | None:
        """What ``probe`` would have brought with so many ids kept; None where nothing near was
        drawn. A greedy probe's beginning is what a shorter one would have drawn."""
        near = (
            draw
            for draw in self._probes.get(probe_kind(probe), ())
            if 0 <= kept - draw.kept <= MAX_PROBE_OFFSET
            and _result_for(draw, probe, position) is not None
        )
        # The nearest, and of those there the very probe before one that is only as good.
        draw = max(near, key=lambda d: (d.kept, d.result.probe == probe), default=None)
        if draw is None or (told := _result_for(draw, probe, position)) is None:
            return None
        decoded = draw.decoded_tokens if draw.result.probe == probe else 0
        return ReplayedResult(
            told, draw.delay_seconds * _decoding_share(draw, told), draw.kept == kept, decoded
        )

    def find_embedding(self, embed: Embed, kept: int, position: int) -> ReplayedResult | None:
        """What the embedder said of the step that ended with so many ids kept, or just before."""
        near = [event for event in self._embeddings if 0 <= kept - event.kept <= MAX_PROBE_OFFSET]
        if not near:
            return None
        event = near[-1]
        seconds = event.at - event.sent_at
        told: QueryResult = EmbeddingFailed(embed, position, "error", event.at)
        if event.vector:
            told = EmbeddingResult(embed, unpack_vector(event.vector), position, seconds, event.at)
        return ReplayedResult(told, seconds, event.kept == kept)


def _result_for(
    draw: _RecordedProbe, probe: Probe, position: int
) -> ProbeResult | ProbeFailed | None:
    """The result as ``probe`` would have got it, or None where it would have drawn more."""
    result = replace(draw.result, position=position, probe=probe)
    drawn = draw.result.probe
    if isinstance(result, ProbeFailed) or drawn == probe:
        return result
    if len(result.tokens) <= probe.max_tokens:
        return result if result.finished or drawn.max_tokens >= probe.max_tokens else None
    # Only what is plainly one entry a token can be shortened.
    tuples = (f.name for f in fields(result) if isinstance(getattr(result, f.name), tuple))
    lists = [name for name in tuples if getattr(result, name)]
    if any(len(getattr(result, name)) != len(result.tokens) for name in lists):
        return None
    shorter: dict[str, Any] = {name: getattr(result, name)[: probe.max_tokens] for name in lists}
    share = probe.max_tokens / len(result.tokens)
    return replace(
        result,
        text="".join(shorter["tokens"]),
        finished=False,
        seconds=result.seconds * share,
        **shorter,
    )


def _decoding_share(draw: _RecordedProbe, told: ProbeResult | ProbeFailed) -> float:
    """Of a drawing's time, what its beginning took: it is decoding that takes it."""
    if isinstance(told, ProbeFailed) or isinstance(draw.result, ProbeFailed):
        return 1.0
    return len(told.tokens) / max(len(draw.result.tokens), 1)


def _make_cue_free_test(marks: TokenizedDialect) -> Callable[[FeedArguments], bool]:
    """Tells, piece by piece, in which of them no part of a cue or of a marker is."""
    scanner, begun, place = CueScanner(marks.definition.cues), False, NO_PARTIAL_MATCH

    def plain(feed: FeedArguments) -> bool:
        nonlocal begun, place
        text, ids, _, answering, ending, _ = feed
        marked = False
        for token in ids:
            before, place = place, marks.matcher.advance(place, token)
            marked = marked or before != NO_PARTIAL_MATCH or place != NO_PARTIAL_MATCH
        skimmed = text != "" and scanner.try_skip(text)
        if not skimmed:
            scanner.feed(text)
        # The first piece of a trace starts clocks.
        first, begun = not begun, begun or text != ""
        return skimmed and not (first or answering or ending or marked)

    return plain


def _make_boundary_free_test() -> Callable[[FeedArguments], bool]:
    """Tells, piece by piece, in which of them nothing ends, or may have ended."""
    scanner = BoundaryScanner()

    def endless(feed: FeedArguments) -> bool:
        found = scanner.feed(feed[0])
        return not found and scanner.settled_length == scanner.length

    return endless


class ReplayDataset:
    """The traces of a file that came to their own end, with what holds for all of them.

    ``truncated`` were left out. ``logprobs``: so many were told with each token. ``embedded``:
    whether steps were. ``layers``: those behind which hidden states were told. ``resume``: seconds
    from a cut to the answer's first token.
    Raises BadTraces.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, traces = load(path)
        try:
            marks = serialization.from_json_value(self.header.dialect)
            needs = serialization.from_json_value(self.header.needs)
            self.logprob_count = max((one.logprobs for one in needs), default=0)
            self.has_embeddings = any(one.embeddings for one in needs)
            every = [ReplayTrace(trace, marks) for trace in traces]
        except (serialization.BadValue, AttributeError, StopIteration) as error:
            raise BadTraces(f"{path}: {error}") from None
        self.dialect = marks
        self.traces = [tape for tape in every if tape.is_complete]
        self.truncated_count = len(every) - len(self.traces)
        if not self.traces:
            raise BadTraces(f"{path} holds no trace that came to its own end")
        self.hidden_state_layers = frozenset(
            layer for tape in self.traces for layer in tape.hidden_state_layers
        )
        self.resume_seconds = _median_resume_seconds(self.traces)

    def filter(self, predicate: Callable[[ReplayTrace], bool]) -> ReplayDataset:
        """Those of them."""
        some = copy(self)
        some.traces = list(filter(predicate, self.traces))
        return some


def _median_resume_seconds(tapes: Sequence[ReplayTrace]) -> float:
    """The median of the cuts that were tried; where none was, of a probe's time a token."""
    tried = [served.first_chunk_seconds for tape in tapes for served in tape.executed_cuts]
    tried = tried or [seconds for tape in tapes for seconds in tape.seconds_per_probe_token()]
    return sorted(tried)[len(tried) // 2] if tried else 0.0
