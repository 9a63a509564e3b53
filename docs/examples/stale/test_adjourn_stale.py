"""A policy is a state machine: its test feeds events and compares the commands."""

import pytest
from adjourn_stale import Stale

from adjourn import Checkpoint, ReasoningChunk, Stop, scale_patience

FIRST, AGAIN = ["1", "2", "+", "3", "=", "1", "5"], ["3", "+", "1", "2", "=", "1", "5"]


def commands(policy, *stretches):
    """The command at the cue after each stretch. A stretch is a list of its tokens' texts."""
    stopper, position, replies = policy.start(), 0, []
    for stretch in stretches:
        for text in stretch:
            position += 1
            assert stopper.observe(ReasoningChunk(text, (1,), position, 0.0)) is None
        replies.append(stopper.observe(Checkpoint("cue", position, 0.0, cue="Wait")))
    return replies


def test_it_stops_after_stretches_without_a_new_number():
    policy = Stale(stretches=2, min_tokens=0)
    assert commands(policy, FIRST, AGAIN, AGAIN) == [None, None, Stop("stale", 21)]


def test_a_new_number_resets_the_count():
    policy = Stale(stretches=2, min_tokens=0)
    assert commands(policy, ["7"], ["7"], ["8"], ["8"], ["7"])[:4] == [None] * 4


def test_a_stretch_without_numbers_does_not_count():
    assert commands(Stale(stretches=1, min_tokens=0), ["so"], ["so"]) == [None, None]


def test_it_does_not_stop_before_min_tokens():
    policy = Stale(stretches=1, min_tokens=20)
    assert commands(policy, FIRST, AGAIN, AGAIN) == [None, None, Stop("stale", 21)]


def test_patience_scales_the_stretches():
    assert scale_patience(Stale(stretches=2), 2) == Stale(stretches=4)
    assert scale_patience(Stale(stretches=2), 0.25) == Stale(stretches=1)


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="stretches"):
        Stale(stretches=0)
