"""``tilt`` raises the end marker's logit and never stops a trace."""

from __future__ import annotations

import pytest

from adjourn.policies.events import Extend
from adjourn.policies.stopping.tilt import Tilt
from tests.policies.session_helpers import (
    boundary_checkpoint,
    cue_checkpoint,
    probe_result,
    reasoning_chunk,
)


def test_a_constant_bias_needs_no_events() -> None:
    """It is a field of the main stream's request."""
    assert Tilt(bias=2).needs.end_bias == 2
    assert not Tilt(bias=2).needs.reasoning_chunks
    stopper = Tilt(bias=2).start()
    assert [stopper.observe(reasoning_chunk("x", 1, position=n)) for n in range(0, 5000, 100)] == [
        None
    ] * 50


def test_a_slope_rises_in_steps() -> None:
    """From ``begin`` on, ``every`` tokens at a time, by ``slope`` logits per thousand tokens."""
    stopper = Tilt(bias=1, slope=2, begin=500, every=100).start()
    replies = {n: stopper.observe(reasoning_chunk("x", 1, position=n)) for n in range(0, 801, 50)}
    steps = {n: step for n, step in replies.items() if step is not None}
    assert steps == {
        n: Extend("", pytest.approx(1 + 2 * (n - 500) / 1000)) for n in (600, 700, 800)
    }


def test_a_chunk_of_many_tokens_is_one_step() -> None:
    """Trap 2: the bias is that of its position, however many steps it skips."""
    stopper = Tilt(slope=1, every=10).start()
    assert stopper.observe(reasoning_chunk("x", 1, position=500)) == Extend("", 1.5)
    assert stopper.observe(reasoning_chunk("x", 1, position=505)) is None


def test_the_bias_is_limited() -> None:
    """To 100, the limit of the OpenAI API."""
    stopper = Tilt(bias=99, slope=1000).start()
    assert stopper.observe(reasoning_chunk("x", 1, position=5000)) == Extend("", 100.0)


def test_other_events_change_nothing() -> None:
    """Trap 6: it never stops a trace."""
    stopper = Tilt(slope=1).start()
    assert [
        stopper.observe(e)
        for e in (cue_checkpoint(999), boundary_checkpoint("sentence", 999), probe_result(999))
    ] == [None] * 3


@pytest.mark.parametrize(
    "options", [{"bias": -1}, {"bias": 101}, {"slope": -1}, {"begin": -1}, {"every": 0}]
)
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    """A bias that no engine accepts, and steps of 0 tokens."""
    with pytest.raises(ValueError, match="must"):
        Tilt(**options)
