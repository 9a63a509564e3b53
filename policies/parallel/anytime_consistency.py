"""``anytime-consistency``: sample until an anytime-valid test is certain of the leading answer.

Rule: for each answer j, and for one that was never seen, bet against "j is the mode" (the model's
most likely answer). Before each trace, each bet backs the answer that leads among the others; it
multiplies its capital by 2θ if the trace gives that answer and by 2(1 - θ) if it gives j. If j is
the mode no such bet gains on average, so by Ville's inequality the chance that its capital ever
reaches 1 / ``alpha`` is at most ``alpha``. The capital is split over several θ. Stop when the bets
against all answers but the leader have reached 1 / ``alpha``: the chance that the leader is not the
mode is then at most ``alpha``, however often one checks.
Units: traces; ``alpha`` is a probability.
Source: the promise is that of CITE, arXiv 2605.05873.
Deviations: the bet is ours. Traces count in the order in which they were opened, not in which they
finish, since short traces finish first and are not like the others.
Cost: traces until then, about 8 if all agree; at ``max`` the majority is chosen without a promise.
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
    """Options of ``anytime-consistency``. ``alpha`` in (0, 1); ``window``: concurrent traces;
    ``max``: traces at most."""

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
    """One request. State: that of ``WindowSampler``, and the labels of the current window by trace,
    which ``decide`` moves into the test."""

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
    """The votes so far, and the logarithm of each bet's capital, by answer and stake (θ). Only
    ``add`` changes them."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._log_capital: dict[int, list[float]] = {_UNSEEN: [0.0] * len(_STAKES)}

    def add(self, label: int) -> None:
        """Settle all bets with the next trace's answer."""
        if label not in self._log_capital:
            # Until now it was an unseen answer, so the bet against it is the same.
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
        """The smallest alpha at which every answer but the leader is rejected, in (0, 1]."""
        others = [c for label, c in self._log_capital.items() if label != leader]
        least = min(sum(map(math.exp, capital)) / len(capital) for capital in others)
        return min(1.0, 1.0 / least)
