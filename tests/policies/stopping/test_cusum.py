"""``cusum`` stops at a sentence end once the trace has become confident."""

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


def feed(stopper: Stopper, tokens: list[tuple[float, ...]], sizes: list[int]) -> None:
    """Feed tokens with these log-probabilities, in chunks of these sizes."""
    position = 0
    while tokens:
        size = sizes[0] if sizes else 1
        chunk, tokens, sizes = tokens[:size], tokens[size:], sizes[1:]
        position += len(chunk)
        event = ReasoningChunk("x", tuple(range(len(chunk))), position, 0.0, tuple(chunk))
        assert stopper.observe(event) is None


def exceeds_threshold(values: list[float]) -> bool:
    """Whether the statistic ever exceeds the threshold: it is the largest sum of consecutive
    (reference - H)."""
    best = largest = 0.0
    for value in values:
        best = max(0.0, best + POLICY.reference - value)
        largest = max(largest, best)
    return largest > POLICY.threshold


@given(st.lists(st.sampled_from([SURE, UNSURE]), max_size=60), st.lists(st.integers(1, 5)))
def test_it_stops_if_and_only_if_the_statistic_exceeds_the_threshold(
    tokens: list, sizes: list[int]
) -> None:
    """However the tokens are split into chunks."""
    stopper = POLICY.start()
    feed(stopper, tokens, sizes)
    values = [0.0 if token is SURE else math.log(2) for token in tokens]
    expected = Stop("sure", 60) if exceeds_threshold(values) else None
    assert stopper.observe(boundary_checkpoint("sentence", 60)) == expected


def test_it_stops_at_sentence_ends_only() -> None:
    """However confident the trace is."""
    stopper = POLICY.start()
    feed(stopper, [SURE] * 50, [])
    assert [
        stopper.observe(event)
        for event in (cue_checkpoint(50), boundary_checkpoint("paragraph", 50))
    ] == [None] * 2
    assert stopper.observe(boundary_checkpoint("sentence", 50)) == Stop("sure", 50)


def test_it_does_not_stop_before_min_tokens() -> None:
    """A confident beginning is not enough."""
    stopper = Cusum(reference=0.5, threshold=4.0, min_tokens=64).start()
    feed(stopper, [SURE] * 63, [])
    assert stopper.observe(boundary_checkpoint("sentence", 63)) is None
    assert stopper.observe(boundary_checkpoint("sentence", 64)) == Stop("sure", 64)


def test_without_log_probabilities_it_never_stops() -> None:
    """Trap 6: missing log-probabilities do not count as certain."""
    stopper = POLICY.start()
    for position in range(500):
        stopper.observe(reasoning_chunk("x", 1, position=position))
        assert stopper.observe(boundary_checkpoint("sentence", position)) is None
    assert stopper.observe(probe_result(500)) is None
    feed(stopper, [()] * 500, [3])
    assert stopper.observe(boundary_checkpoint("sentence", 500)) is None


@pytest.mark.parametrize(
    "options", [{"reference": 0}, {"threshold": 0}, {"threshold": math.nan}, {"min_tokens": -1}]
)
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    """A statistic that cannot grow, or that exceeds its threshold at once."""
    with pytest.raises(ValueError, match="must"):
        Cusum(**options)
