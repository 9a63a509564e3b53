"""``deviation`` stops when unsure turns come more often than over the whole trace."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import ReasoningChunk, Stop
from adjourn.policies.stopping.deviation import Deviation
from tests.policies.session_helpers import boundary_checkpoint, cue_checkpoint, probe_result

SURE, UNSURE = (0.0,), (math.log(0.5), math.log(0.5))
POLICY = Deviation(window=10, threshold=2.0, min_tokens=20)


def stops(policy: Deviation, trace: str, size: int = 1) -> int | None:
    """Where it stops on a trace of tokens, so many a piece: ``W`` an unsure cue, ``w`` a sure one,
    ``u`` unsure. A cue's place is where its piece begins."""
    stopper = policy.start()
    for begin in range(0, len(trace), size):
        now = trace[begin : begin + size]
        told = tuple(UNSURE if one in "Wu" else SURE for one in now)
        stopper.observe(ReasoningChunk("x", tuple(range(len(now))), begin + len(now), 0.0, told))
        for one in now:
            if one in "Ww" and (stop := stopper.observe(cue_checkpoint(begin))) is not None:
                assert stop == Stop("deviating", begin)
                return begin
    return None


def oracle(policy: Deviation, trace: str, size: int) -> int | None:
    turns: list[int] = []
    for at, one in enumerate(trace):
        begin = at // size * size
        if one in "Ww" and not {"W", "u"}.isdisjoint(trace[begin : begin + size]):
            turns.append(begin)
            recent = sum(turn > begin - policy.window for turn in turns)
            index = recent / policy.window / (len(turns) / (begin + 1))
            enough = begin + 1 >= max(policy.min_tokens, policy.window)
            if enough and recent > 1 and index > policy.threshold:
                return begin
    return None


@given(
    st.lists(st.sampled_from(["W", "w", "u", "." * 9, "W.W"]), max_size=20).map("".join),
    st.integers(1, 4),
)
def test_the_index_is_counted_as_it_goes(trace: str, size: int) -> None:
    """Token by token or in pieces: the same place as from the whole trace at once."""
    assert stops(POLICY, trace, size) == oracle(POLICY, trace, size)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pieces_of_several_tokens(size: int) -> None:
    """A turn within a piece is one at its beginning."""
    assert stops(POLICY, "...W" + "." * 40 + "W.W.W", size) is not None


def test_turns_in_a_row_stop_it() -> None:
    """One turn long ago, then three at once: the second of them is too many."""
    assert stops(POLICY, "...W" + "." * 40 + "W.W.W") == 46


def test_a_turn_alone_never_stops_it() -> None:
    """One turn is no frequency, however long the quiet before it."""
    assert stops(POLICY, "." * 500 + "W") is None


def test_turns_at_a_steady_pace_never_stop_it() -> None:
    """Trap 6: the recent share is the whole share."""
    assert stops(POLICY, "....W" * 500) is None


def test_a_sure_cue_is_no_turn() -> None:
    """A cue that the model had to write is not a change of its mind."""
    assert stops(POLICY, "...W" + "." * 40 + "w.w.w") is None


def test_not_before_min_tokens() -> None:
    """Nor before a whole window was thought."""
    assert stops(Deviation(window=5, threshold=1.5, min_tokens=30), "W" + "." * 20 + "WWW") is None
    assert stops(Deviation(window=5, threshold=1.5, min_tokens=0), "W" + "." * 20 + "WWW") == 22


def test_other_events_say_nothing() -> None:
    """A sentence's end or a probe's result is no turn."""
    stopper = Deviation(window=1, min_tokens=0, threshold=0.1).start()
    assert [
        stopper.observe(e)
        for e in (boundary_checkpoint("sentence", 9), probe_result(9), cue_checkpoint(9))
    ] == [None] * 3


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"min_tokens": -1}, {"threshold": 0}, {"threshold": math.nan}, {"entropy": -1}],
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """An empty window and an index that everything passes are refused."""
    with pytest.raises(ValueError, match="must"):
        Deviation(**options)
