"""``deviation`` stops when unsure turns come more often than over the whole trace."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.deviation import Deviation
from policies.events import Stop, Thought
from tests.policies.lab import cue, ended, result

SURE, UNSURE = (0.0,), (math.log(0.5), math.log(0.5))
POLICY = Deviation(window=10, threshold=2.0, min_tokens=20)


def stops(policy: Deviation, trace: str, size: int = 1) -> int | None:
    """Where it stops on a trace of tokens: ``W`` an unsure cue, ``w`` a sure one, else none."""
    stopper, cues = policy.start(), []
    for begin in range(0, len(trace), size):
        now = trace[begin : begin + size]
        told = tuple(UNSURE if one in "Wu" else SURE for one in now)
        position = begin + len(now)
        stopper.observe(Thought("x", tuple(range(len(now))), position, 0.0, told))
        cues += [begin + at for at, one in enumerate(now) if one in "Ww"]
        while cues and cues[0] < position:
            at = cues.pop(0)
            if (stop := stopper.observe(cue(at))) is not None:
                assert stop == Stop("deviating", at)
                return at
    return None


def oracle(policy: Deviation, trace: str) -> int | None:
    for at, one in enumerate(trace):
        length = at + 1
        if one == "W" and length >= max(policy.min_tokens, policy.window):
            recent = trace[max(length - policy.window, 0) : length].count("W")
            index = recent / policy.window / (trace[:length].count("W") / length)
            if recent > 1 and index > policy.threshold:
                return at
    return None


@given(st.text("Wwu..", max_size=120), st.integers(1, 4))
def test_the_index_is_counted_as_it_goes(trace: str, size: int) -> None:
    """Token by token or in pieces: the same place as from the whole trace at once."""
    assert stops(POLICY, trace, size) == oracle(POLICY, trace)


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
    assert [stopper.observe(e) for e in (ended("sentence", 9), result(9), cue(9))] == [None] * 3


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"min_tokens": -1}, {"threshold": 0}, {"threshold": math.nan}, {"entropy": -1}],
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """An empty window and an index that everything passes are refused."""
    with pytest.raises(ValueError, match="must"):
        Deviation(**options)
