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

from policies.policy import Needs
from policies.sampling import (
    Answered,
    Begun,
    Choose,
    Closed,
    Command,
    Event,
    Failed,
    GiveUp,
    Open,
    Reached,
    Sampling,
    Score,
    Scored,
)

__all__ = ["PartialReward"]


@dataclass(frozen=True, slots=True)
class PartialReward(Sampling):
    """Options of ``partial-reward``. ``tokens`` between two rounds; ``keep`` in (0, 1)."""

    name: ClassVar[str] = "partial-reward"
    traces: int = 16
    tokens: int = 64
    keep: float = 0.25

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        if not 2 <= self.traces <= 128 or self.tokens < 1:
            raise ValueError("traces must lie in [2, 128], tokens be at least 1")
        if not 0 < self.keep < 1:
            raise ValueError("keep must lie in (0, 1)")

    @property
    def every(self) -> int:
        return self.tokens

    @property
    def needs(self) -> Needs:
        return self.trace.needs | Needs(rewards=True)

    def sample(self) -> PartialRewardSampler:
        return PartialRewardSampler(self)


@dataclass(slots=True)
class _Runner:
    """A trace that is still in the race. ``asked``: its reward of this round is under way or there.
    ``reward``: the latest that it got; ``scored``: in this round."""

    position: int = 0
    closed: bool = False
    asked: bool = False
    scored: bool = False
    reward: float | None = None


class PartialRewardSampler:
    def __init__(self, policy: PartialReward) -> None:
        self._policy = policy
        self._goal = policy.tokens
        self._race: dict[int, _Runner] = {}

    def observe(self, event: Event) -> Sequence[Command]:
        if isinstance(event, Begun):
            self._race = {trace: _Runner() for trace in range(self._policy.traces)}
            return (Open(self._policy.traces),)
        if (runner := self._race.get(event.trace)) is None:
            return ()
        match event:
            case Reached(position=position):
                runner.position = position
            case Closed() | Answered():
                runner.closed = True
            case Scored(reward=reward):
                runner.scored, runner.reward = True, reward
            case Failed(trace):
                del self._race[trace]
        return (*self._asked(), *self._judged())

    def _asked(self) -> list[Command]:
        """Those that came to the round's goal since."""
        due = [
            trace
            for trace, runner in self._race.items()
            if not runner.asked and (runner.closed or runner.position >= self._goal)
        ]
        for trace in due:
            self._race[trace].asked = True
        return [Score(trace) for trace in due]

    def _judged(self) -> Sequence[Command]:
        """What follows from the round, once it is whole."""
        race = self._race
        if not race or not all(runner.scored for runner in race.values()):
            return ()
        told = sorted((-r.reward, trace) for trace, r in race.items() if r.reward is not None)
        if not told:
            return (Choose(min(race), "unrewarded"),)
        if all(runner.closed for runner in race.values()):
            return (Choose(told[0][1], "best"),)
        kept = {trace for _, trace in told[: max(int(len(told) * self._policy.keep), 1)]}
        kept |= {trace for trace, runner in race.items() if runner.reward is None}
        if len(kept) == 1:
            return (Choose(min(kept), "last"),)
        lost = tuple(trace for trace in race if trace not in kept)
        self._race = {trace: race[trace] for trace in sorted(kept)}
        return (GiveUp(lost), *self._begun()) if lost else self._begun()

    def _begun(self) -> Sequence[Command]:
        """The next round. What has ended has its reward for good."""
        self._goal += self._policy.tokens
        for runner in self._race.values():
            runner.asked = runner.scored = runner.closed and runner.reward is not None
        return (*self._asked(), *self._judged())
