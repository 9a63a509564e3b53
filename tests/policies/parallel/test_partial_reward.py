"""``partial-reward`` keeps the best share of its traces in each round, in any order of events."""

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
    """Drives the sampler. ``lengths``: tokens of each trace, None if it fails at once. ``rewards``:
    of each trace, None if the reward model fails. ``order``: which event comes next."""

    def __init__(
        self,
        policy: PartialReward,
        lengths: Sequence[int | None],
        rewards: Sequence[float | None],
        order: Sequence[int],
    ) -> None:
        self.scores: list[tuple[int, int]] = []
        self.aborted: list[int] = []
        self.rounds: list[int] = []
        self.choice: ChooseTrace | None = None
        self._sampler = policy.start_sampler()
        self._lengths, self._rewards, self._order = lengths, rewards, order
        self._due: deque[Any] = deque()
        self._positions: dict[int, int] = {}

    def run(self) -> ChooseTrace | None:
        self._observe(RequestStarted(0.0))
        turn = 0
        while self._due and self.choice is None:
            self._due.rotate(-self._order[turn % len(self._order)])
            self._observe(self._due.popleft())
            turn += 1
        return self.choice

    def _observe(self, event: Any) -> None:
        if isinstance(event, TokensReached):
            self._queue_next_event(event.trace)
        for command in self._sampler.observe(event):
            assert self.choice is None
            match command:
                case OpenTraces(count):
                    for trace in range(count):
                        self._queue_next_event(trace)
                case ScoreTrace(trace):
                    assert trace not in self.aborted
                    position = self._positions[trace]
                    self.scores.append((trace, position))
                    self._due.append(TraceScored(trace, self._rewards[trace], position, 0.0))
                case AbortTraces(traces):
                    assert not set(traces) & set(self.aborted)
                    self.aborted += traces
                    self.rounds.append(len(traces))
                    self._due = deque(e for e in self._due if e.trace not in traces)
                case ChooseTrace() as choice:
                    assert choice.trace not in self.aborted
                    self.choice = choice

    def _queue_next_event(self, trace: int) -> None:
        """Queue the trace's next event."""
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
def test_a_trace_that_did_not_fail_is_chosen(
    lengths: list[int | None], rewards: list[float | None], order: list[int], keep: float
) -> None:
    """If there is one, whichever traces and rewards fail."""
    race = Race(policy(keep), lengths, rewards, order)
    choice = race.run()
    if choice is None:
        assert lengths == [None] * 8
    else:
        assert lengths[choice.trace] is not None


@given(lengths=LENGTHS, rewards=REWARDS, order=ORDERS, keep=KEEPS)
def test_the_trace_with_the_best_reward_is_chosen(
    lengths: list[int], rewards: list[float], order: list[int], keep: float
) -> None:
    """Of equal ones the first, in any order of events."""
    choice = Race(policy(keep), lengths, rewards, order).run()
    assert choice is not None
    assert choice.trace == rewards.index(max(rewards))


@given(rewards=REWARDS, order=ORDERS)
def test_each_round_keeps_a_share(rewards: list[float], order: list[int]) -> None:
    """Eight, four, two, one; each trace is scored once a round, and not before its goal."""
    race = Race(policy(0.5), [100] * 8, rewards, order)
    race.run()
    assert race.rounds == [4, 2][: len(race.rounds)]
    assert len(race.scores) <= 8 + 4 + 2
    for trace in range(8):
        places = [position for scored, position in race.scores if scored == trace]
        assert all(at >= TOKENS * n for n, at in enumerate(places, start=1))
        assert places


@given(lengths=MAYBE_LENGTHS, rewards=MAYBE_REWARDS, order=ORDERS)
def test_a_trace_without_a_score_is_kept(
    lengths: list[int | None], rewards: list[float | None], order: list[int]
) -> None:
    """A reward model that fails aborts no trace."""
    race = Race(policy(), lengths, rewards, order)
    race.run()
    assert [trace for trace in race.aborted if rewards[trace] is None] == []


def test_a_round_without_scores_is_the_last() -> None:
    """The traces cannot be ranked: the first one is chosen, the others are aborted."""
    race = Race(policy(), [100] * 8, [None] * 8, [0])
    assert race.run() == ChooseTrace(0, "unrewarded")
    assert len(race.scores) == 8


def test_a_trace_that_has_ended_is_scored_once() -> None:
    """Its text does not change; traces that are still open are scored again."""
    race = Race(policy(0.5, traces=4), [4, 100, 100, 100], [3.0, 2.0, 1.0, 0.0], [0])
    assert race.run() == ChooseTrace(0, "last")
    assert [trace for trace, _ in race.scores].count(0) == 1
    assert [trace for trace, _ in race.scores].count(1) == 2


def test_the_best_is_chosen_if_all_end_before_the_goal() -> None:
    """There is one round, on whole traces."""
    race = Race(policy(0.5, traces=4), [4, 3, 2, 1], [0.0, 2.0, 1.0, 0.0], [0])
    assert race.run() == ChooseTrace(1, "best")
    assert race.rounds == []


@pytest.mark.parametrize("options", ["traces=1", "traces=129", "tokens=0", "keep=0.0", "keep=1.0"])
def test_invalid_options_are_refused(options: str) -> None:
    """A single trace, rounds without tokens, a round that keeps all or none."""
    with pytest.raises(BadPolicy, match="must"):
        parse(f"partial-reward({options})")
