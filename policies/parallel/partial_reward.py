"""``partial-reward``: a reward model reads the traces as they come, the worst are given up early.

Rule: ``traces`` begin at once. Each is scored when it has thought ``tokens`` tokens, or where it
ended before; when all are, the best share ``keep`` of them go on and the others are given up. The
survivors are scored again after ``tokens`` more, and so on. The last one is the response as soon as
it is alone; where all have ended before that, the best.
Rewards only order the traces. One that the reward model said nothing of is kept in that round; a
round in which it said nothing of any is the last, and the first trace that is there the response.
Source: Early Rejection with Partial Reward Modeling, arXiv 2508.01969: 4 to 64 beams of which a
quarter is kept, after 32 to 128 tokens of a step. There the survivors are branched into as many
beams as before; here none is, so a round is paid for by fewer traces each time.
Cost: ``tokens`` of all ``traces``, then of a share ``keep`` of them each round, then one trace; and
the reward model's work, which is counted apart.
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
    """Options of ``partial-reward``. ``tokens`` between two rounds; ``keep`` in (0, 1)."""

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
    """A trace that is still in the race. ``asked``: its reward of this round is under way or there.
    ``reward``: the latest that it got; ``scored``: in this round."""

    position: int = 0
    closed: bool = False
    score_requested: bool = False
    has_score: bool = False
    reward: float | None = None


class PartialRewardSampler:
    def __init__(self, policy: PartialReward) -> None:
        self._policy = policy
        self._round_goal = policy.tokens
        self._remaining: dict[int, _RacingTrace] = {}

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        if isinstance(event, RequestStarted):
            self._remaining = {trace: _RacingTrace() for trace in range(self._policy.traces)}
            return (OpenTraces(self._policy.traces),)
        if (runner := self._remaining.get(event.trace)) is None:
            return ()
        match event:
            case TokensReached(position=position):
                runner.position = position
            case TraceClosed() | TraceAnswered():
                runner.closed = True
            case TraceScored(reward=reward):
                runner.has_score, runner.reward = True, reward
            case TraceFailed(trace):
                del self._remaining[trace]
        return (*self._request_scores(), *self._finish_round())

    def _request_scores(self) -> list[SamplingCommand]:
        """Those that came to the round's goal since."""
        due = [
            trace
            for trace, runner in self._remaining.items()
            if not runner.score_requested and (runner.closed or runner.position >= self._round_goal)
        ]
        for trace in due:
            self._remaining[trace].score_requested = True
        return [ScoreTrace(trace) for trace in due]

    def _finish_round(self) -> Sequence[SamplingCommand]:
        """What follows from the round, once it is whole."""
        race = self._remaining
        if not race or not all(runner.has_score for runner in race.values()):
            return ()
        told = sorted((-r.reward, trace) for trace, r in race.items() if r.reward is not None)
        if not told:
            return (ChooseTrace(min(race), "unrewarded"),)
        if all(runner.closed for runner in race.values()):
            return (ChooseTrace(told[0][1], "best"),)
        kept = {trace for _, trace in told[: max(int(len(told) * self._policy.keep), 1)]}
        kept |= {trace for trace, runner in race.items() if runner.reward is None}
        if len(kept) == 1:
            return (ChooseTrace(min(kept), "last"),)
        lost = tuple(trace for trace in race if trace not in kept)
        self._remaining = {trace: race[trace] for trace in sorted(kept)}
        return (AbortTraces(lost), *self._start_round()) if lost else self._start_round()

    def _start_round(self) -> Sequence[SamplingCommand]:
        """The next round. What has ended has its reward for good."""
        self._round_goal += self._policy.tokens
        for runner in self._remaining.values():
            runner.score_requested = runner.has_score = runner.closed and runner.reward is not None
        return (*self._request_scores(), *self._finish_round())
