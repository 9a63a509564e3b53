"""``loop`` stops exact repetition where a brute-force check finds it, or soon after."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adjourn.policies.events import Stop
from adjourn.policies.stopping.loop import Loop
from tests.policies.session_helpers import cue_checkpoint, probe_result, reasoning_chunk

POLICY = Loop(repeats=3, max_cycle=60, min_tokens=12)
_MAX_DELAY = 8
"""A stop comes at most one cycle and so many tokens late."""


def stops_after(policy: Loop, tokens: Sequence[int]) -> int | None:
    """The number of tokens after which it stops."""
    stopper = policy.start()
    for count, token in enumerate(tokens, 1):
        if stopper.observe(reasoning_chunk("", token, position=count)) is not None:
            return count
    return None


class Oracle:
    """By brute force: for each cycle length, how many of the last tokens equal the ones a cycle
    earlier."""

    def __init__(self, policy: Loop) -> None:
        self.policy = policy
        self.tokens: list[int] = []
        self.runs = [0] * (policy.max_cycle + 1)

    def add(self, token: int) -> None:
        self.tokens.append(token)
        at = len(self.tokens) - 1
        for cycle in range(1, min(at, self.policy.max_cycle) + 1):
            matches = self.tokens[at - cycle] == token
            self.runs[cycle] = self.runs[cycle] + 1 if matches else 0

    def is_loop(self, *, late: bool = False) -> bool:
        """Whether the tail is a loop; ``late``: whether it was one a cycle and eight tokens ago."""
        policy = self.policy
        return any(
            run > 0
            and run + cycle - late * (cycle + _MAX_DELAY)
            >= max(policy.repeats * cycle, policy.min_tokens)
            for cycle, run in enumerate(self.runs)
        )


_FLAT = st.lists(st.integers(0, 2), min_size=1, max_size=20)


@st.composite
def _lines(draw: st.DrawFn) -> list[int]:
    """A cycle of lines with the same beginning, like the repeated sentences of a model."""
    head = draw(st.lists(st.integers(0, 3), min_size=5, max_size=9))
    tails = draw(st.lists(st.integers(4, 6), min_size=1, max_size=5))
    return [token for tail in tails for token in (*head, tail)]


@given(st.lists(st.integers(0, 2), max_size=30), _FLAT | _lines(), st.integers(1, 6))
@example([], [0] * 16 + [1], 6)
@example([], [*range(8), 8, *range(8), 8, *range(8), 9, *range(8), 9], 6)
def test_it_stops_where_brute_force_finds_a_loop(
    before: list[int], cycle: list[int], copies: int
) -> None:
    """Never before the tail is a loop, and at most a cycle and eight tokens later."""
    tokens = before + cycle * copies
    at, oracle = stops_after(POLICY, tokens), Oracle(POLICY)
    for count, token in enumerate(tokens, 1):
        oracle.add(token)
        if count == at:
            assert oracle.is_loop()
            return
        assert not oracle.is_loop(late=True)


def test_sentences_that_alternate_in_pairs_are_a_loop() -> None:
    """ "Is it 5? Is it 5? Is it 6? Is it 6?", again and again: the cycle has four sentences."""
    ask = list(range(10))
    cycle = [*ask, 50, *ask, 50, *ask, 60, *ask, 60]
    at = stops_after(Loop(), cycle * 8)
    assert at is not None
    assert at <= 5 * len(cycle) + _MAX_DELAY


@pytest.mark.parametrize(("cycle", "expected"), [([1], 12), ([1, 2], 12), ([1, 2, 3, 4, 5], 15)])
def test_it_stops_after_repeats_and_min_tokens(cycle: list[int], expected: int) -> None:
    """After ``repeats`` copies, and not before ``min_tokens`` tokens of repetition."""
    at = stops_after(POLICY, cycle * 20)
    assert at is not None
    assert expected <= at <= expected + len(cycle) + _MAX_DELAY


def test_three_copies_are_no_loop_if_four_are_required() -> None:
    """``repeats`` is the smallest number of copies."""
    sentence = list(range(40))
    assert stops_after(Loop(repeats=4), [*sentence * 3, *range(100, 200)]) is None


def test_a_cycle_longer_than_max_cycle_is_no_loop() -> None:
    """A cycle of exactly that length is one."""
    assert stops_after(Loop(max_cycle=30), list(range(31)) * 9) is None
    assert stops_after(Loop(max_cycle=31), list(range(31)) * 9) is not None


def test_a_row_of_dashes_is_no_loop() -> None:
    """Tables have short rows of one token."""
    assert stops_after(Loop(), [7] * 63 + list(range(100, 164))) is None


def test_other_text_and_events_never_stop_it() -> None:
    """Trap 6: text without repetition, and events that are not reasoning chunks."""
    stopper = Loop().start()
    events = [reasoning_chunk("", *range(n, n + 5), position=n) for n in range(0, 9000, 5)]
    assert [stopper.observe(event) for event in (*events, cue_checkpoint(9), probe_result(9))] == [
        None
    ] * 1802


@given(st.lists(st.integers(1, 7), min_size=1, max_size=60))
def test_chunks_of_several_tokens_stop_at_the_same_place(sizes: list[int]) -> None:
    """Trap 2: in the chunk with the token at which single tokens would stop."""
    tokens = [*range(10), *([1, 2, 3, 4, 5, 6] * 30)]
    at, stopper, count = stops_after(POLICY, tokens), POLICY.start(), 0
    for size in sizes:
        chunk = tokens[count : count + size]
        count += len(chunk)
        command = stopper.observe(reasoning_chunk("", *chunk, position=count))
        assert command == (Stop("loop") if at is not None and count >= at else None)
        if command is not None:
            return


def test_its_memory_per_token_is_small() -> None:
    """At most 50 bytes a token of a long trace."""
    stopper = Loop().start()
    tracemalloc.start()
    try:
        for token in range(20_000):
            stopper.observe(reasoning_chunk("", token, position=token))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 50 * 20_000


@pytest.mark.parametrize("options", [{"repeats": 1}, {"max_cycle": 0}, {"min_tokens": -1}])
def test_invalid_options_are_refused(options: dict[str, int]) -> None:
    """A single copy is no repetition."""
    with pytest.raises(ValueError, match="at least 2"):
        Loop(**options)
