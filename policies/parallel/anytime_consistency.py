"""``anytime-consistency``: sample until the mode is certain, by a test that holds at any time.

Rule: for each answer j, one that was never seen among them, a wager against "j is the model's most
likely answer": before each trace it is put on the answer that leads without j, which wins 2θ where
the trace says it, and 2(1 - θ) where it says j. If j is the mode no such wager gains on average, so
by Ville's inequality its capital ever reaches 1/``alpha`` with a chance of at most ``alpha``; the
capital is shared among several θ. Stop when the wagers against all answers but the leader's have
come to 1/``alpha``: the leader is not the mode with a chance of at most ``alpha``, however often
one looks. Traces count in the order in which they were opened, not in which they came to an end:
short ones come first, and are not like the others.
Source: the promise is that of CITE, arXiv 2605.05873; the wager is our own.
Cost: traces until then, ``max`` at most, where the majority is taken without a promise.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.parallel.votes import WindowSampler
from adjourn.policies.sampling import ChooseTrace, SamplingPolicy, TraceAnswered

__all__ = ["AnytimeConsistency", "BettingTest"]

_STAKES = (0.6, 0.75, 0.9, 0.99)
_UNSEEN = -1


@dataclass(frozen=True, slots=True)
class AnytimeConsistency(SamplingPolicy):
    """Options of ``anytime-consistency``. ``alpha`` in (0, 1); ``window``: traces at once."""

    name: ClassVar[str] = "anytime-consistency"
    alpha: float = 0.05
    window: int = 4
    max: int = 40

    def __post_init__(self) -> None:
        SamplingPolicy.__post_init__(self)
        if not 0 < self.alpha < 1:
            raise ValueError("alpha must lie between 0 and 1")
        if not 1 <= self.window <= self.max <= 128:
            raise ValueError("window must be at least 1, max no less than window, and at most 128")

    def start_sampler(self) -> AnytimeConsistencySampler:
        return AnytimeConsistencySampler(self)


class AnytimeConsistencySampler(WindowSampler):
    def __init__(self, policy: AnytimeConsistency) -> None:
        super().__init__(policy.window, policy.max)
        self._alpha = policy.alpha
        self._pending_labels: dict[int, int] = {}
        self._betting_test = BettingTest()

    def weigh(self, event: TraceAnswered) -> float:
        assert event.label is not None
        self._pending_labels[event.trace] = event.label
        return 1.0

    def decide(self) -> ChooseTrace | None:
        for trace in sorted(self._pending_labels):
            self._betting_test.add(self._pending_labels.pop(trace))
        leader = self.votes.leader
        if leader is None or self._betting_test.p_value(leader) > self._alpha:
            return None
        return self.votes.choose("certain", 1 - self._betting_test.p_value(leader))


class BettingTest:
    """The capital of each wager, by answer and stake, as logarithms."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._log_capital: dict[int, list[float]] = {_UNSEEN: [0.0] * len(_STAKES)}

    def add(self, label: int) -> None:
        """The next trace's answer."""
        if label not in self._log_capital:
            # Until now it was one of those never seen, and the wager against it the same.
            self._log_capital[label] = list(self._log_capital[_UNSEEN])
        ranked = [known for known, _ in self._counts.most_common()]
        for against, capital in self._log_capital.items():
            backed = next((known for known in ranked if known != against), None)
            if backed is None or label not in (backed, against):
                continue
            for index, stake in enumerate(_STAKES):
                capital[index] += math.log(2 * (stake if label == backed else 1 - stake))
        self._counts[label] += 1

    def p_value(self, leader: int) -> float:
        """The least alpha at which every other answer is refused, in (0, 1]."""
        others = [c for label, c in self._log_capital.items() if label != leader]
        least = min(sum(map(math.exp, capital)) / len(capital) for capital in others)
        return min(1.0, 1.0 / least)
