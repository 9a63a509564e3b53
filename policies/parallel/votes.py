"""Count answers as votes, and open traces window by window."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from adjourn.policies.sampling import (
    ChooseTrace,
    OpenTraces,
    RequestStarted,
    SamplingCommand,
    SamplingEvent,
    TraceAnswered,
    TraceFailed,
)

__all__ = ["Votes", "WindowSampler"]


class Votes:
    """Weighted votes by the class (label) of the answer. Only ``add`` changes them.

    weights  the sum of each class
    voters   (-weight, trace) of each vote of a class
    """

    def __init__(self) -> None:
        self.weights: dict[int, float] = {}
        self.voters: dict[int, list[tuple[float, int]]] = {}

    def add(self, label: int, trace: int, weight: float = 1.0) -> None:
        self.weights[label] = self.weights.get(label, 0.0) + weight
        self.voters.setdefault(label, []).append((-weight, trace))

    @property
    def leader(self) -> int | None:
        """The heaviest class; None without votes. Of equal ones, the one with the earliest trace,
        in whatever order the answers came."""
        first = {label: min(trace for _, trace in votes) for label, votes in self.voters.items()}
        return min(first, key=lambda label: (-self.weights[label], first[label]), default=None)

    @property
    def ranked_weights(self) -> list[float]:
        """The weights, heaviest first."""
        return sorted(self.weights.values(), reverse=True)

    @property
    def leader_share(self) -> float:
        """The leader's share of the weight, in [0, 1]."""
        ranked = self.ranked_weights
        total = sum(ranked)
        return ranked[0] / total if total else 0.0

    def choose(self, reason: str, confidence: float | None = None) -> ChooseTrace:
        """Choose the heaviest trace of the leading class, of equal ones the first. There must be a
        vote."""
        assert self.leader is not None
        votes = self.voters[self.leader]
        return ChooseTrace(min(votes)[1], reason, confidence, len(votes))


class WindowSampler:
    """Opens traces window by window, and decides when all traces of a window have finished.

    A subclass implements ``decide``, and may override ``weigh``. Independent of it, the leader is
    chosen as soon as the votes still to come cannot change the lead, at the latest after
    ``max_traces``. The class that is chosen does not depend on the order of a window's answers. A
    window without any answer is the last.

    state          content                                            changed by
    -------------  -------------------------------------------------  -------------------
    window_size    traces of the next window                          subclasses
    max_traces     traces at most                                     subclasses
    votes          all answers so far                                 observe
    opened_count   traces opened so far                               observe
    window_labels  answers of the current window, None for no answer  observe
    """

    max_vote_weight = 1.0
    """The largest weight that ``weigh`` returns."""

    def __init__(self, window_size: int, max_traces: int) -> None:
        self.window_size = window_size
        self.max_traces = max_traces
        self.votes = Votes()
        self.opened_count = 0
        self.window_labels: list[int | None] = []
        self._running_count = 0

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        match event:
            case RequestStarted():
                return self._open_traces(self.window_size)
            case TraceAnswered():
                self._running_count -= 1
                self.window_labels.append(event.label)
                if event.label is not None:
                    self.votes.add(event.label, event.trace, self.weigh(event))
                return self._decide_next()
            case TraceFailed():
                self._running_count -= 1
                self.window_labels.append(None)
                return self._decide_next()
        return ()

    def weigh(self, event: TraceAnswered) -> float:
        """The weight of this vote."""
        return 1.0

    @abstractmethod
    def decide(self) -> ChooseTrace | None:
        """The choice after a whole window with an answer, or None to continue."""

    def _decide_next(self) -> Sequence[SamplingCommand]:
        if self._running_count:
            return (
                (self.votes.choose("settled", self.votes.leader_share),) if self._is_decided else ()
            )
        if any(label is not None for label in self.window_labels):
            if (choice := self.decide()) is not None:
                return (choice,)
            self.window_labels = []
            if self._is_decided:
                return (self.votes.choose("settled", self.votes.leader_share),)
            if self.opened_count < self.max_traces:
                return self._open_traces(min(self.window_size, self.max_traces - self.opened_count))
        if self.votes.leader is None:
            return ()
        return (self.votes.choose("majority", self.votes.leader_share),)

    def _open_traces(self, count: int) -> Sequence[SamplingCommand]:
        self.opened_count += count
        self._running_count += count
        return (OpenTraces(count),)

    @property
    def _is_decided(self) -> bool:
        """Whether the votes still to come cannot change the lead."""
        first, second, *_ = [*self.votes.ranked_weights, 0.0, 0.0]
        left = self.max_traces - self.opened_count + self._running_count
        return first - second > left * self.max_vote_weight
