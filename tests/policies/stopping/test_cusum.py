"""``cusum`` stops at a sentence's end once the trace has gone from unsure to sure."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import ReasoningChunk, Stop
from adjourn.policies.policy import Stopper
from adjourn.policies.stopping.cusum import Cusum
from tests.policies.session_helpers import (
    boundary_checkpoint,
    cue_checkpoint,
    probe_result,
    reasoning_chunk,
)

SURE, UNSURE = (0.0,), (math.log(0.5), math.log(0.5))
POLICY = Cusum(reference=0.5, threshold=4.0, min_tokens=0)


def think(stopper: Stopper, tokens: list[tuple[float, ...]], sizes: list[int]) -> None:
    """These tokens' log-probabilities, so many a piece."""
    position = 0
    while tokens:
        size = sizes[0] if sizes else 1
        now, tokens, sizes = tokens[:size], tokens[size:], sizes[1:]
        position += len(now)
        event = ReasoningChunk("x", tuple(range(len(now))), position, 0.0, tuple(now))
        assert stopper.observe(event) is None


def alarm(values: list[float]) -> bool:
    """Whether the statistic ever passed: the largest sum of a run of (reference - H)."""
    best = largest = 0.0
    for value in values:
        best = max(0.0, best + POLICY.reference - value)
        largest = max(largest, best)
    return largest > POLICY.threshold


@given(st.lists(st.sampled_from([SURE, UNSURE]), max_size=60), st.lists(st.integers(1, 5)))
def test_the_alarm_whatever_the_chunking(tokens: list, sizes: list[int]) -> None:
    """It stops at a sentence's end if, and only if, the statistic has passed its threshold."""
    stopper = POLICY.start()
    think(stopper, tokens, sizes)
    values = [0.0 if one is SURE else math.log(2) for one in tokens]
    expected = Stop("sure", 60) if alarm(values) else None
    assert stopper.observe(boundary_checkpoint("sentence", 60)) == expected


def test_it_waits_for_the_end_of_a_sentence() -> None:
    """However sure it is: a cut in mid-sentence helps nobody."""
    stopper = POLICY.start()
    think(stopper, [SURE] * 50, [])
    assert [
        stopper.observe(event)
        for event in (cue_checkpoint(50), boundary_checkpoint("paragraph", 50))
    ] == [None] * 2
    assert stopper.observe(boundary_checkpoint("sentence", 50)) == Stop("sure", 50)


def test_not_before_min_tokens() -> None:
    """A sure beginning is only a beginning."""
    stopper = Cusum(reference=0.5, threshold=4.0, min_tokens=64).start()
    think(stopper, [SURE] * 63, [])
    assert stopper.observe(boundary_checkpoint("sentence", 63)) is None
    assert stopper.observe(boundary_checkpoint("sentence", 64)) == Stop("sure", 64)


def test_without_log_probabilities_it_never_stops() -> None:
    """Trap 6: what the engine does not tell is not taken for certainty."""
    stopper = POLICY.start()
    for position in range(500):
        stopper.observe(reasoning_chunk("x", 1, position=position))
        assert stopper.observe(boundary_checkpoint("sentence", position)) is None
    assert stopper.observe(probe_result(500)) is None
    think(stopper, [()] * 500, [3])
    assert stopper.observe(boundary_checkpoint("sentence", 500)) is None


@pytest.mark.parametrize(
    "options", [{"reference": 0}, {"threshold": 0}, {"threshold": math.nan}, {"min_tokens": -1}]
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """A statistic that could not grow, or that passes at once, is refused."""
    with pytest.raises(ValueError, match="must"):
        Cusum(**options)
