"""``loop`` stops exact repetition, as a brute-force reading of the tail would, and soon enough."""

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
_LATE = 8


def fired(policy: Loop, tokens: Sequence[int]) -> int | None:
    """After how many tokens it says stop."""
    stopper = policy.start()
    for count, token in enumerate(tokens, 1):
        if stopper.observe(reasoning_chunk("", token, position=count)) is not None:
            return count
    return None


class Oracle:
    """Every cycle's run, kept by brute force: how long the tail equals itself so many before."""

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

    def looped(self, *, late: bool = False) -> bool:
        """Whether the tail is a loop now; ``late``: and was one a cycle and eight tokens ago."""
        policy = self.policy
        return any(
            run > 0
            and run + cycle - late * (cycle + _LATE)
            >= max(policy.repeats * cycle, policy.min_tokens)
            for cycle, run in enumerate(self.runs)
        )


_FLAT = st.lists(st.integers(0, 2), min_size=1, max_size=20)


@st.composite
def _lines(draw: st.DrawFn) -> list[int]:
    """A cycle of lines that begin alike, as a model's repeated sentences do."""
    head = draw(st.lists(st.integers(0, 3), min_size=5, max_size=9))
    tails = draw(st.lists(st.integers(4, 6), min_size=1, max_size=5))
    return [token for tail in tails for token in (*head, tail)]


@given(st.lists(st.integers(0, 2), max_size=30), _FLAT | _lines(), st.integers(1, 6))
@example([], [0] * 16 + [1], 6)
@example([], [*range(8), 8, *range(8), 8, *range(8), 9, *range(8), 9], 6)
def test_it_agrees_with_brute_force(before: list[int], cycle: list[int], copies: int) -> None:
    """Never before the tail is a loop, and at most a cycle and eight tokens after it."""
    tokens = before + cycle * copies
    at, oracle = fired(POLICY, tokens), Oracle(POLICY)
    for count, token in enumerate(tokens, 1):
        oracle.add(token)
        if count == at:
            assert oracle.looped()
            return
        assert not oracle.looped(late=True)


def test_sentences_that_alternate_in_pairs_are_a_loop() -> None:
    """Is it 5? Is it 5? Is it 6? Is it 6? and again: the cycle is four sentences long."""
    ask = list(range(10))
    cycle = [*ask, 50, *ask, 50, *ask, 60, *ask, 60]
    at = fired(Loop(), cycle * 8)
    assert at is not None
    assert at <= 5 * len(cycle) + _LATE


@pytest.mark.parametrize(("cycle", "expected"), [([1], 12), ([1, 2], 12), ([1, 2, 3, 4, 5], 15)])
def test_when_it_fires(cycle: list[int], expected: int) -> None:
    """At ``repeats`` copies, and never under ``min_tokens``."""
    at = fired(POLICY, cycle * 20)
    assert at is not None
    assert expected <= at <= expected + len(cycle) + _LATE


def test_three_copies_are_not_four() -> None:
    """A sentence said three times is no loop where four are asked for."""
    sentence = list(range(40))
    assert fired(Loop(repeats=4), [*sentence * 3, *range(100, 200)]) is None


def test_a_cycle_over_the_limit_is_no_loop() -> None:
    """Cycles longer than ``max_cycle`` are not looked for."""
    assert fired(Loop(max_cycle=30), list(range(31)) * 9) is None
    assert fired(Loop(max_cycle=31), list(range(31)) * 9) is not None


def test_a_row_of_dashes_is_no_loop() -> None:
    """Short rows of one token are what tables are made of."""
    assert fired(Loop(), [7] * 63 + list(range(100, 164))) is None


def test_it_does_not_stop_whatever_happens() -> None:
    """Trap 6: text that does not repeat never stops it, nor do events that are no thoughts."""
    stopper = Loop().start()
    events = [reasoning_chunk("", *range(n, n + 5), position=n) for n in range(0, 9000, 5)]
    assert [stopper.observe(event) for event in (*events, cue_checkpoint(9), probe_result(9))] == [
        None
    ] * 1802


@given(st.lists(st.integers(1, 7), min_size=1, max_size=60))
def test_several_tokens_in_a_chunk(sizes: list[int]) -> None:
    """Trap 2: the same tokens in larger pieces stop at the piece in which one by one they would."""
    tokens = [*range(10), *([1, 2, 3, 4, 5, 6] * 30)]
    at, stopper, count = fired(POLICY, tokens), POLICY.start(), 0
    for size in sizes:
        piece = tokens[count : count + size]
        count += len(piece)
        command = stopper.observe(reasoning_chunk("", *piece, position=count))
        assert command == (Stop("loop") if at is not None and count >= at else None)
        if command is not None:
            return


def test_what_it_remembers_is_bounded() -> None:
    """A long trace leaves its tokens behind, and little for each."""
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
def test_options_that_make_no_sense(options: dict[str, int]) -> None:
    """One copy of anything is no repetition."""
    with pytest.raises(ValueError, match="at least 2"):
        Loop(**options)
