"""``partial-reward``: a reward model scores unfinished traces, and the worst are aborted.

Rule: open ``traces`` at once. Score each when it has ``tokens`` tokens, or where it ended before
that. When all have their score, the best share ``keep`` of them continues and the others are
aborted; the next round comes ``tokens`` tokens later. The last trace left is the response; if all
have ended before, the best one. Rewards only order the traces. A trace without a score is kept in
that round. A round without any score is the last: the first trace left is the response.
Units: traces; tokens of the trace.
Source: Early Rejection with Partial Reward Modeling, arXiv 2508.01969: 4 to 64 beams, of which a
quarter is kept, after 32 to 128 tokens of a step.
Deviations: the paper branches its survivors into as many beams as before; here they continue alone,
so each round has fewer traces.
Cost: ``tokens`` tokens of all ``traces``, then of a share ``keep`` of them in each round, then one
trace; and the reward model's work, which is counted separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.policy import Needs
from adjourn.policies.sampling import (
    AbortTraces,
    ChooseTrace,
    OpenTraces,
    RequestStarted,
    SamplingCommand,
    SamplingEvent,
    SamplingPolicy,
    ScoreTrace,
    TokensReached,
    TraceAnswered,
    TraceClosed,
    TraceFailed,
    TraceScored,
)

__all__ = ["PartialReward"]


@dataclass(frozen=True, slots=True)
class PartialReward(SamplingPolicy):
    """Options of ``partial-reward``. ``traces``: at the start; ``tokens``: of each trace between
    two rounds; ``keep``: share that continues, in (0, 1)."""

    name: ClassVar[str] = "partial-reward"
    traces: int = 16
    tokens: int = 64
    keep: float = 0.25

    def __post_init__(self) -> None:
        SamplingPolicy.__post_init__(self)
        if not 2 <= self.traces <= 128 or self.tokens < 1:
            raise ValueError("traces must lie in [2, 128], tokens be at least 1")
        if not 0 < self.keep < 1:
            raise ValueError("keep must lie in (0, 1)")

    @property
    def report_interval(self) -> int:
        return self.tokens

    @property
    def needs(self) -> Needs:
        return self.trace_policy.needs | Needs(rewards=True)

    def start_sampler(self) -> PartialRewardSampler:
        return PartialRewardSampler(self)


@dataclass(slots=True)
class _RacingTrace:
    """A trace that was not aborted.

    position         tokens of the trace, as far as reported
    closed           it has ended its reasoning
    score_requested  a score of this round was requested, or is not needed
    has_score        this round's reply has come, or is not needed
    reward           the latest reply; None if it had no score
    """

    position: int = 0
    closed: bool = False
    score_requested: bool = False
    has_score: bool = False
    reward: float | None = None


class PartialRewardSampler:
    """One request. State, changed by ``observe`` only: ``_round_goal``, the position at which
    traces are scored in this round, and ``_remaining``, the traces that were not aborted."""

    def __init__(self, policy: PartialReward) -> None:
        self._policy = policy
        self._round_goal = policy.tokens
        self._remaining: dict[int, _RacingTrace] = {}

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        if isinstance(event, RequestStarted):
            self._remaining = {trace: _RacingTrace() for trace in range(self._policy.traces)}
            return (OpenTraces(self._policy.traces),)
        if (racing := self._remaining.get(event.trace)) is None:
            return ()
        match event:
            case TokensReached(position=position):
                racing.position = position
            case TraceClosed() | TraceAnswered():
                racing.closed = True
            case TraceScored(reward=reward):
                racing.has_score, racing.reward = True, reward
            case TraceFailed(trace):
                del self._remaining[trace]
        return (*self._request_scores(), *self._finish_round())

    def _request_scores(self) -> list[SamplingCommand]:
        """Request the scores of the traces that have reached the round's goal."""
        due = [
            trace
            for trace, racing in self._remaining.items()
            if not racing.score_requested and (racing.closed or racing.position >= self._round_goal)
        ]
        for trace in due:
            self._remaining[trace].score_requested = True
        return [ScoreTrace(trace) for trace in due]

    def _finish_round(self) -> Sequence[SamplingCommand]:
        """Choose, or abort the worst and start the next round, once every trace has its score."""
        race = self._remaining
        if not race or not all(racing.has_score for racing in race.values()):
            return ()
        ranked = sorted((-r.reward, trace) for trace, r in race.items() if r.reward is not None)
        if not ranked:
            return (ChooseTrace(min(race), "unrewarded"),)
        if all(racing.closed for racing in race.values()):
            return (ChooseTrace(ranked[0][1], "best"),)
        kept = {trace for _, trace in ranked[: max(int(len(ranked) * self._policy.keep), 1)]}
        kept |= {trace for trace, racing in race.items() if racing.reward is None}
        if len(kept) == 1:
            return (ChooseTrace(min(kept), "last"),)
        rejected = tuple(trace for trace in race if trace not in kept)
        self._remaining = {trace: race[trace] for trace in sorted(kept)}
        return (AbortTraces(rejected), *self._start_round()) if rejected else self._start_round()

    def _start_round(self) -> Sequence[SamplingCommand]:
        """Start the next round. A trace that has ended keeps its reward, if it has one."""
        self._round_goal += self._policy.tokens
        for racing in self._remaining.values():
            racing.score_requested = racing.has_score = racing.closed and racing.reward is not None
        return (*self._request_scores(), *self._finish_round())
