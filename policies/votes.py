"""Answers as votes, and traces that are opened window by window."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from policies.sampling import Answered, Begun, Choose, Command, Event, Failed, Open

__all__ = ["Votes", "Windows"]


class Votes:
    """Weights of the answers by what they mean. Of equals the one that was there first leads."""

    def __init__(self) -> None:
        self.weights: dict[int, float] = {}
        self.traces: dict[int, list[tuple[float, int]]] = {}

    def add(self, label: int, trace: int, weight: float = 1.0) -> None:
        self.weights[label] = self.weights.get(label, 0.0) + weight
        self.traces.setdefault(label, []).append((-weight, trace))

    @property
    def leader(self) -> int | None:
        """Ties go to the class whose earliest trace is the earliest, in whatever order its answers
        came."""
        first = {label: min(trace for _, trace in told) for label, told in self.traces.items()}
        return min(first, key=lambda label: (-self.weights[label], first[label]), default=None)

    @property
    def ranked(self) -> list[float]:
        """The weights, heaviest first."""
        return sorted(self.weights.values(), reverse=True)

    @property
    def share(self) -> float:
        """The leader's part of all, in [0, 1]."""
        ranked = self.ranked
        total = sum(ranked)
        return ranked[0] / total if total else 0.0

    def choose(self, reason: str, confidence: float | None = None) -> Choose:
        """The leading class's heaviest trace, of equals the first. There must be an answer."""
        assert self.leader is not None
        told = self.traces[self.leader]
        return Choose(min(told)[1], reason, confidence, len(told))


class Windows:
    """Opens traces window by window, and decides when a window is whole.

    Subclasses say in ``decide`` whether its answers are enough. Until then the leader is chosen as
    soon as nothing that may still come could overtake it, at the latest after ``most`` traces.
    Which class is chosen does not depend on the order in which a window's answers come. A window
    that brought no answer at all is the last.
    """

    heaviest = 1.0  # what one vote can weigh

    def __init__(self, size: int, most: int) -> None:
        self.size = size
        self.most = most
        self.votes = Votes()
        self.opened = 0
        self.window: list[int | None] = []
        self._running = 0

    def observe(self, event: Event) -> Sequence[Command]:
        match event:
            case Begun():
                return self._open(self.size)
            case Answered():
                self._running -= 1
                self.window.append(event.label)
                if event.label is not None:
                    self.votes.add(event.label, event.trace, self.weigh(event))
                return self._next()
            case Failed():
                self._running -= 1
                self.window.append(None)
                return self._next()
        return ()

    def weigh(self, event: Answered) -> float:
        return 1.0

    @abstractmethod
    def decide(self) -> Choose | None:
        """The choice, where the whole window that has come is enough for it."""

    def _next(self) -> Sequence[Command]:
        if self._running:
            return (self.votes.choose("settled", self.votes.share),) if self._settled else ()
        if any(label is not None for label in self.window):
            if (choice := self.decide()) is not None:
                return (choice,)
            self.window = []
            if self._settled:
                return (self.votes.choose("settled", self.votes.share),)
            if self.opened < self.most:
                return self._open(min(self.size, self.most - self.opened))
        if self.votes.leader is None:
            return ()
        return (self.votes.choose("majority", self.votes.share),)

    def _open(self, count: int) -> Sequence[Command]:
        self.opened += count
        self._running += count
        return (Open(count),)

    @property
    def _settled(self) -> bool:
        """Whether the leader has more than all others could still come to."""
        first, second, *_ = [*self.votes.ranked, 0.0, 0.0]
        left = self.most - self.opened + self._running
        return first - second > left * self.heaviest
