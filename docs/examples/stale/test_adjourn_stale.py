"""A policy is a state machine: its test feeds events and looks at the commands."""

import pytest
from adjourn_stale import Stale

from adjourn.policies.events import Checkpoint, ReasoningChunk, Stop


def commands(policy, *stretches):
    """What it answers at the cue behind each stretch, given as the tokens' texts."""
    stopper, position, answers = policy.start(), 0, []
    for stretch in stretches:
        for text in stretch:
            position += 1
            assert stopper.observe(ReasoningChunk(text, (1,), position, 0.0)) is None
        answers.append(stopper.observe(Checkpoint("cue", position, 0.0, cue="Wait")))
    return answers


def test_it_stops_when_nothing_new_is_said():
    first, again = ["1", "2", "+", "3", "=", "1", "5"], ["3", "+", "1", "2", "=", "1", "5"]
    policy = Stale(stretches=2, min_tokens=0)
    assert commands(policy, first, again, again) == [None, None, Stop("stale", 21)]


def test_a_new_number_begins_the_count_anew():
    policy = Stale(stretches=2, min_tokens=0)
    assert commands(policy, ["7"], ["7"], ["8"], ["8"], ["7"])[:4] == [None] * 4


def test_words_are_no_stretch():
    assert commands(Stale(stretches=1, min_tokens=0), ["so"], ["so"]) == [None, None]


def test_options_are_checked():
    with pytest.raises(ValueError, match="stretches"):
        Stale(stretches=0)
