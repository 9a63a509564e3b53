"""The recorded results of probes and embeddings of one trace, found by query and place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

from adjourn.lab import serialization
from adjourn.lab.plan import probe_kind
from adjourn.lab.trace_log import EmbeddingCompleted, LogEvent, ProbeCompleted
from adjourn.lab.vectors import unpack_vector
from adjourn.policies.events import (
    Embed,
    EmbeddingFailed,
    EmbeddingResult,
    Probe,
    ProbeFailed,
    ProbeResult,
    QueryResult,
)
from adjourn.policies.evidence.answers import answer_confidence, extract_trial_answer
from adjourn.policies.evidence.hidden_states import Layer

__all__ = ["MAX_PROBE_OFFSET", "RecordedResults", "ReplayedResult", "TrialAnswer"]

MAX_PROBE_OFFSET = 32
"""A result that was recorded at most so many tokens before a place may be used at that place."""


@dataclass(frozen=True, slots=True)
class ReplayedResult:
    """The result of a query. ``delay_seconds``: from the checkpoint to the result. ``is_exact``: it
    was recorded at this very place. ``decoded_tokens``: that the query cost."""

    result: QueryResult
    delay_seconds: float
    is_exact: bool
    decoded_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """The trial answer at ``position`` and the model's confidence in it, in [0, 1]."""

    position: int
    answer: str
    confidence: float


@dataclass(frozen=True, slots=True)
class _RecordedProbe:
    kept: int
    delay_seconds: float
    result: ProbeResult | ProbeFailed
    decoded_tokens: int


class RecordedResults:
    """What probes and embeddings of one trace returned. Does not change."""

    def __init__(self, events: Iterable[LogEvent]) -> None:
        probes: dict[Probe, list[_RecordedProbe]] = defaultdict(list)
        embeddings = []
        for event in events:
            if isinstance(event, EmbeddingCompleted):
                embeddings.append(event)
            elif isinstance(event, ProbeCompleted):
                result = serialization.from_json_value(event.result)
                probes[probe_kind(result.probe)].append(
                    _RecordedProbe(
                        event.kept, event.at - event.sent_at, result, event.decoded_tokens
                    )
                )
        self._embeddings = sorted(embeddings, key=lambda event: event.kept)
        # By kind, whatever the length of the probe; each list in the order of places.
        self._probes = {
            kind: sorted(found, key=lambda recorded: recorded.kept)
            for kind, found in probes.items()
        }

    def trial_answers(self) -> list[TrialAnswer]:
        """In the order of their positions."""
        results = (recorded.result for recorded in self._probes.get(probe_kind(Probe()), []))
        return [
            TrialAnswer(
                r.position, extract_trial_answer(r.text), answer_confidence(r.tokens, r.logprobs)
            )
            for r in results
            if isinstance(r, ProbeResult)
        ]

    def hidden_state_layers(self) -> frozenset[Layer]:
        """The layers whose hidden states were recorded."""
        results = (recorded.result for recorded in chain.from_iterable(self._probes.values()))
        states = (r.hidden_states for r in results if isinstance(r, ProbeResult))
        return frozenset(
            Layer(number, one.width) for one in states if one is not None for number in one.layers
        )

    def seconds_per_probe_token(self) -> list[float]:
        """For each probe its delay in seconds divided by its tokens."""
        return [
            recorded.delay_seconds / len(recorded.result.tokens)
            for recorded in chain.from_iterable(self._probes.values())
            if isinstance(recorded.result, ProbeResult) and recorded.result.tokens
        ]

    def find_probe(self, probe: Probe, kept: int, position: int) -> ReplayedResult | None:
        """The result of ``probe`` after ``kept`` ids; None if none was recorded there or at most
        MAX_PROBE_OFFSET tokens before.

        Probes are greedy, so the beginning of a longer probe's result answers a shorter probe.
        """
        near = (
            recorded
            for recorded in self._probes.get(probe_kind(probe), ())
            if 0 <= kept - recorded.kept <= MAX_PROBE_OFFSET
            and _result_for(recorded, probe, position) is not None
        )
        # The nearest; at one place, the same probe before a longer one.
        recorded = max(near, key=lambda r: (r.kept, r.result.probe == probe), default=None)
        if recorded is None or (result := _result_for(recorded, probe, position)) is None:
            return None
        return ReplayedResult(
            result,
            recorded.delay_seconds * _decoding_share(recorded, result),
            recorded.kept == kept,
            recorded.decoded_tokens if recorded.result.probe == probe else 0,
        )

    def find_embedding(self, embed: Embed, kept: int, position: int) -> ReplayedResult | None:
        """The embedding of the step that ended after ``kept`` ids, or at most MAX_PROBE_OFFSET
        tokens before; None if none was recorded."""
        near = [event for event in self._embeddings if 0 <= kept - event.kept <= MAX_PROBE_OFFSET]
        if not near:
            return None
        event = near[-1]
        seconds = event.at - event.sent_at
        result: QueryResult = EmbeddingFailed(embed, position, "error", event.at)
        if event.vector:
            vector = unpack_vector(event.vector)
            result = EmbeddingResult(embed, vector, position, seconds, event.at)
        return ReplayedResult(result, seconds, event.kept == kept)


def _result_for(
    recorded: _RecordedProbe, probe: Probe, position: int
) -> ProbeResult | ProbeFailed | None:
    """The recorded result as the result of ``probe``; None if ``probe`` would have generated more
    tokens."""
    result = replace(recorded.result, position=position, probe=probe)
    recorded_probe = recorded.result.probe
    if isinstance(result, ProbeFailed) or recorded_probe == probe:
        return result
    if len(result.tokens) <= probe.max_tokens:
        is_complete = result.finished or recorded_probe.max_tokens >= probe.max_tokens
        return result if is_complete else None
    # Only fields that are empty or have exactly one entry for each token can be shortened.
    tuples = (f.name for f in fields(result) if isinstance(getattr(result, f.name), tuple))
    names = [name for name in tuples if getattr(result, name)]
    if any(len(getattr(result, name)) != len(result.tokens) for name in names):
        return None
    shorter: dict[str, Any] = {name: getattr(result, name)[: probe.max_tokens] for name in names}
    share = probe.max_tokens / len(result.tokens)
    return replace(
        result,
        text="".join(shorter["tokens"]),
        finished=False,
        seconds=result.seconds * share,
        **shorter,
    )


def _decoding_share(recorded: _RecordedProbe, result: ProbeResult | ProbeFailed) -> float:
    """The share of the recorded delay that ``result`` took, in proportion to its tokens."""
    if isinstance(result, ProbeFailed) or isinstance(recorded.result, ProbeFailed):
        return 1.0
    return len(result.tokens) / max(len(recorded.result.tokens), 1)
