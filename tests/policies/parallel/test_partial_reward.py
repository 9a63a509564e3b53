"""``partial-reward`` keeps the best share of its traces, round by round, whoever is the faster."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.parallel.partial_reward import PartialReward
from adjourn.policies.registry import BadPolicy, parse
from adjourn.policies.sampling import (
    AbortTraces,
    ChooseTrace,
    OpenTraces,
    RequestStarted,
    ScoreTrace,
    TokensReached,
    TraceClosed,
    TraceFailed,
    TraceScored,
)

TOKENS = 10


class Race:
    """``lengths``: where each trace ends, None where it breaks off at once. ``rewards``: of each
    trace the one that it gets, None where the reward model fails. ``order`` says who is next."""

    def __init__(
        self,
        policy: PartialReward,
        lengths: Sequence[int | None],
        rewards: Sequence[float | None],
        order: Sequence[int],
    ) -> None:
        self.scores: list[tuple[int, int]] = []
        self.lost: list[int] = []
        self.rounds: list[int] = []
        self.choice: ChooseTrace | None = None
        self._sampler = policy.start_sampler()
        self._lengths, self._rewards, self._order = lengths, rewards, order
        self._due: deque[Any] = deque()
        self._positions: dict[int, int] = {}

    def run(self) -> ChooseTrace | None:
        self._show(RequestStarted(0.0))
        turn = 0
        while self._due and self.choice is None:
            self._due.rotate(-self._order[turn % len(self._order)])
            self._show(self._due.popleft())
            turn += 1
        return self.choice

    def _show(self, event: Any) -> None:
        if isinstance(event, TokensReached):
            self._think(event.trace)
        for command in self._sampler.observe(event):
            assert self.choice is None
            match command:
                case OpenTraces(count):
                    for trace in range(count):
                        self._think(trace)
                case ScoreTrace(trace):
                    assert trace not in self.lost
                    position = self._positions[trace]
                    self.scores.append((trace, position))
                    self._due.append(TraceScored(trace, self._rewards[trace], position, 0.0))
                case AbortTraces(traces):
                    assert not set(traces) & set(self.lost)
                    self.lost += traces
                    self.rounds.append(len(traces))
                    self._due = deque(e for e in self._due if e.trace not in traces)
                case ChooseTrace() as choice:
                    assert choice.trace not in self.lost
                    self.choice = choice

    def _think(self, trace: int) -> None:
        """The trace goes on to its next event."""
        position, length = self._positions.get(trace, 0) + TOKENS, self._lengths[trace]
        if length is None:
            self._due.append(TraceFailed(trace, 0.0))
            return
        self._positions[trace] = min(position, length)
        ended = position >= length
        self._due.append(
            TraceClosed(trace, length, 0.0) if ended else TokensReached(trace, position, 0.0)
        )


LENGTHS = st.lists(st.integers(1, 60), min_size=8, max_size=8)
MAYBE_LENGTHS = st.lists(st.none() | st.integers(1, 60), min_size=8, max_size=8)
REWARDS = st.lists(st.floats(-5, 5), min_size=8, max_size=8)
MAYBE_REWARDS = st.lists(st.none() | st.floats(-5, 5), min_size=8, max_size=8)
ORDERS = st.lists(st.integers(0, 50), min_size=1, max_size=30)
KEEPS = st.sampled_from([0.1, 0.25, 0.5, 0.9])


def policy(keep: float = 0.25, traces: int = 8) -> PartialReward:
    return PartialReward(traces=traces, tokens=TOKENS, keep=keep)


@given(lengths=MAYBE_LENGTHS, rewards=MAYBE_REWARDS, order=ORDERS, keep=KEEPS)
def test_it_always_comes_to_a_choice(
    lengths: list[int | None], rewards: list[float | None], order: list[int], keep: float
) -> None:
    """Whatever breaks off and whoever says nothing: one that did not break off is chosen."""
    race = Race(policy(keep), lengths, rewards, order)
    choice = race.run()
    if choice is None:
        assert lengths == [None] * 8
    else:
        assert lengths[choice.trace] is not None


@given(lengths=LENGTHS, rewards=REWARDS, order=ORDERS, keep=KEEPS)
def test_the_best_is_chosen(
    lengths: list[int], rewards: list[float], order: list[int], keep: float
) -> None:
    """Of equals the first; in whatever order they come."""
    choice = Race(policy(keep), lengths, rewards, order).run()
    assert choice is not None
    assert choice.trace == rewards.index(max(rewards))


@given(rewards=REWARDS, order=ORDERS)
def test_a_share_is_kept_each_round(rewards: list[float], order: list[int]) -> None:
    """Eight, four, two, one, unless all end before: each scored once a round, and no sooner."""
    race = Race(policy(0.5), [100] * 8, rewards, order)
    race.run()
    assert race.rounds == [4, 2][: len(race.rounds)]
    assert len(race.scores) <= 8 + 4 + 2
    for trace in range(8):
        places = [position for scored, position in race.scores if scored == trace]
        assert all(at >= TOKENS * n for n, at in enumerate(places, start=1))
        assert places


@given(lengths=MAYBE_LENGTHS, rewards=MAYBE_REWARDS, order=ORDERS)
def test_one_that_was_not_scored_is_kept(
    lengths: list[int | None], rewards: list[float | None], order: list[int]
) -> None:
    """A reward model that fails gives nobody up."""
    race = Race(policy(), lengths, rewards, order)
    race.run()
    assert [trace for trace in race.lost if rewards[trace] is None] == []


def test_a_round_without_a_word_is_the_last() -> None:
    """Nothing tells the traces apart: the first goes on, the others cost no more."""
    race = Race(policy(), [100] * 8, [None] * 8, [0])
    assert race.run() == ChooseTrace(0, "unrewarded")
    assert len(race.scores) == 8


def test_what_has_ended_is_scored_once() -> None:
    """It will not change; those that think on are scored anew."""
    race = Race(policy(0.5, traces=4), [4, 100, 100, 100], [3.0, 2.0, 1.0, 0.0], [0])
    assert race.run() == ChooseTrace(0, "last")
    assert [trace for trace, _ in race.scores].count(0) == 1
    assert [trace for trace, _ in race.scores].count(1) == 2


def test_all_ended_before_the_goal() -> None:
    """One round on whole traces, and the best of them."""
    race = Race(policy(0.5, traces=4), [4, 3, 2, 1], [0.0, 2.0, 1.0, 0.0], [0])
    assert race.run() == ChooseTrace(1, "best")
    assert race.rounds == []


@pytest.mark.parametrize("options", ["traces=1", "traces=129", "tokens=0", "keep=0.0", "keep=1.0"])
def test_options_that_make_no_sense(options: str) -> None:
    """A race of one, no round at all, a round that keeps all or none."""
    with pytest.raises(BadPolicy, match="must"):
        parse(f"partial-reward({options})")
