"""``early-consistency``: sample until one window of answers is unanimous.

Rule: open windows of ``window`` traces; stop if all answers of one window are equal in meaning, or
if the leader can no longer be overtaken. The majority of all answers is the response.
Control: with a ``target``, estimate each class's share from the answers of the first window (half a
vote added to each class, and half a vote for an unseen one). Then use the (window, max) with the
fewest expected traces under which the chance of choosing another answer than the most likely one
is at most 1 - ``target``; if none is, the cheapest of those with the lowest chance.
Units: traces; ``target`` is a probability.
Source: Early-Stopping Self-Consistency (ESC), arXiv 2401.10480, with its control scheme.
Deviations: the half votes, and the choice where no setting reaches the target.
Cost: ``window`` to ``max`` traces.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.parallel.votes import WindowSampler
from adjourn.policies.sampling import ChooseTrace, SamplingPolicy

__all__ = ["EarlyConsistency", "choose_window"]

_MIN_WINDOW = 2


@dataclass(frozen=True, slots=True)
class EarlyConsistency(SamplingPolicy):
    """Options of ``early-consistency``. ``window``: traces in a window; ``max``: traces at most;
    ``target`` in (0, 1), or None for no control."""

    name: ClassVar[str] = "early-consistency"
    window: int = 5
    max: int = 40
    target: float | None = None

    def __post_init__(self) -> None:
        SamplingPolicy.__post_init__(self)
        if not _MIN_WINDOW <= self.window <= self.max <= 128:
            raise ValueError("window must be at least 2, max no less than window, and at most 128")
        if self.target is not None and not 0 < self.target < 1:
            raise ValueError("target must lie between 0 and 1")

    def start_sampler(self) -> EarlyConsistencySampler:
        return EarlyConsistencySampler(self)


class EarlyConsistencySampler(WindowSampler):
    """One request. ``_target``: None after the first window, which has set the sizes."""

    def __init__(self, policy: EarlyConsistency) -> None:
        super().__init__(policy.window, policy.max)
        self._target = policy.target

    def decide(self) -> ChooseTrace | None:
        if len(self.window_labels) == self.window_size and len(set(self.window_labels)) == 1:
            return self.votes.choose("unanimous", self.votes.leader_share)
        if self._target is not None:
            answers = Counter(label for label in self.window_labels if label is not None)
            self.window_size, self.max_traces = choose_window(
                list(answers.values()), self._target, self.max_traces, self.opened_count
            )
            self._target = None
        return None


def choose_window(
    counts: Sequence[int], target: float, max_traces: int, opened_count: int = 0
) -> tuple[int, int]:
    """(window, max) after a first window with ``counts`` answers in each class. ``opened_count``:
    traces opened already, which count for ``max``."""
    total = sum(counts) + 0.5 * (len(counts) + 1)
    shares = sorted(((count + 0.5) / total for count in counts), reverse=True)
    shares.append(0.5 / total)
    choices = []
    for window in range(_MIN_WINDOW, max_traces + 1):
        for windows in range(1, max_traces // window + 1):
            if opened_count + window * windows > max(max_traces, opened_count):
                break
            choices.append((*_expected_cost_and_error(shares, window, windows), window, windows))
    if not choices:
        return max_traces, max_traces
    reaching_target = [choice for choice in choices if choice[1] <= 1 - target]
    if reaching_target:
        _, _, window, windows = min(reaching_target)
    else:
        _, _, window, windows = min(choices, key=lambda choice: (round(choice[1], 2), choice[0]))
    return window, opened_count + window * windows


def _expected_cost_and_error(
    shares: Sequence[float], window: int, windows: int
) -> tuple[float, float]:
    """(expected traces, probability of choosing another answer than the most likely one)."""
    unanimous = [share**window for share in shares]
    stop = sum(unanimous)
    never = (1 - stop) ** windows
    expected = window * (1 - never) / stop
    wrong = (stop - max(unanimous)) / stop * (1 - never)
    # Without a unanimous window, consider a vote between the two most likely answers.
    first, second = sorted(shares, reverse=True)[:2]
    return expected, wrong + never * _outvote_probability(
        second / (first + second), window * windows
    )


def _outvote_probability(share: float, votes: int) -> float:
    """P(a side with this share of the votes gets at least half of ``votes``)."""
    return sum(
        math.comb(votes, k) * share**k * (1 - share) ** (votes - k)
        for k in range((votes + 1) // 2, votes + 1)
    )
