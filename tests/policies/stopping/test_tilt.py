"""``tilt`` raises the end marker's logit, and stops nothing."""

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


def test_a_constant_bias_needs_nothing_else() -> None:
    """It is a field of the main stream's request; no token is looked at."""
    assert Tilt(bias=2).needs.end_bias == 2
    assert not Tilt(bias=2).needs.reasoning_chunks
    stopper = Tilt(bias=2).start()
    assert [stopper.observe(reasoning_chunk("x", 1, position=n)) for n in range(0, 5000, 100)] == [
        None
    ] * 50


def test_a_slope_rises_in_steps() -> None:
    """From ``begin`` on, ``every`` tokens at a time, by ``slope`` logits per thousand tokens."""
    stopper = Tilt(bias=1, slope=2, begin=500, every=100).start()
    said = {n: stopper.observe(reasoning_chunk("x", 1, position=n)) for n in range(0, 801, 50)}
    steps = {n: step for n, step in said.items() if step is not None}
    assert steps == {
        n: Extend("", pytest.approx(1 + 2 * (n - 500) / 1000)) for n in (600, 700, 800)
    }


def test_a_piece_of_many_tokens_is_one_step() -> None:
    """Trap 2: the bias is that of the place, however many steps were jumped over."""
    stopper = Tilt(slope=1, every=10).start()
    assert stopper.observe(reasoning_chunk("x", 1, position=500)) == Extend("", 1.5)
    assert stopper.observe(reasoning_chunk("x", 1, position=505)) is None


def test_no_bias_is_more_than_an_engine_takes() -> None:
    """A hundred is OpenAI's limit."""
    stopper = Tilt(bias=99, slope=1000).start()
    assert stopper.observe(reasoning_chunk("x", 1, position=5000)) == Extend("", 100.0)


def test_other_events_say_nothing() -> None:
    """Trap 6: it stops at nothing, ever."""
    stopper = Tilt(slope=1).start()
    assert [
        stopper.observe(e)
        for e in (cue_checkpoint(999), boundary_checkpoint("sentence", 999), probe_result(999))
    ] == [None] * 3


@pytest.mark.parametrize(
    "options", [{"bias": -1}, {"bias": 101}, {"slope": -1}, {"begin": -1}, {"every": 0}]
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """A bias that no engine takes, and steps of nothing, are refused."""
    with pytest.raises(ValueError, match="must"):
        Tilt(**options)
