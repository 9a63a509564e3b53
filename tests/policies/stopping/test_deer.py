"""``deer`` stops at a cue when its trial answer is confident, and never for another reason."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from adjourn.policies.events import Probe, ProbeResult, Stop
from adjourn.policies.policy import Stopper
from adjourn.policies.stopping.deer import Deer
from tests.policies.session_helpers import (
    cue_checkpoint,
    interval_checkpoint,
    probe_failed,
    probe_result,
    reasoning_chunk,
)

GATE, TRIAL = Probe(max_tokens=1), Probe(max_tokens=20)


def judged(stopper: Stopper, position: int, certainty: float) -> Any:
    """What it says of a trial answer at a cue, or None where it would not even look."""
    if stopper.observe(cue_checkpoint(position)) != GATE:
        return None
    assert stopper.observe(probe_result(position, "7", 0.9, GATE, finished=False)) == TRIAL
    return stopper.observe(probe_result(position, "7", certainty, TRIAL))


def test_it_asks_the_gate_then_a_trial_answer_then_stops() -> None:
    """Cue, one-token probe, trial answer, stop at the cue, with the confidence that decided."""
    stop = judged(Deer().start(), 40, 0.97)
    assert stop == Stop("confident", 40, pytest.approx(0.97))


@pytest.mark.parametrize(("certainty", "stops"), [(0.96, True), (0.94, False), (0.5, False)])
def test_only_a_confident_answer_stops(certainty: float, stops: bool) -> None:
    """The rule is C > threshold."""
    assert isinstance(judged(Deer().start(), 40, certainty), Stop) == stops


def test_as_confident_as_the_threshold_is_not_enough() -> None:
    """C equal to the threshold does not pass it."""
    stopper = Deer(threshold=0.5, max_tokens=1).start()
    answer = ProbeResult(GATE, 3, "7", ("7",), (math.log(0.5),), True, 0.0, 0.0)
    stopper.observe(cue_checkpoint(3))
    assert math.exp(answer.logprobs[0]) == 0.5
    assert stopper.observe(answer) is None


def test_the_gate_spares_a_trial_answer_that_could_not_pass() -> None:
    """A first token under threshold ** max_tokens leaves the rule no chance."""
    stopper = Deer(threshold=0.95, max_tokens=20).start()
    stopper.observe(cue_checkpoint(9))
    assert stopper.observe(probe_result(9, "7", 0.95**20 - 0.01, GATE, finished=False)) is None


def test_a_gate_without_log_probabilities_is_a_no() -> None:
    """Nothing drawn, nothing passed."""
    stopper = Deer().start()
    stopper.observe(cue_checkpoint(9))
    assert stopper.observe(ProbeResult(GATE, 9, "", (), (), True, 0.0, 0.0)) is None


def test_without_a_gate_the_trial_answer_is_asked_at_once() -> None:
    """``gate=0`` is the paper's rule."""
    stopper = Deer(gate=0).start()
    assert stopper.observe(cue_checkpoint(9)) == TRIAL
    assert stopper.observe(probe_result(9, "7", 0.99, TRIAL)) == Stop(
        "confident", 9, pytest.approx(0.99)
    )


@pytest.mark.parametrize("drawn", [("}",), (" ", "}"), ()])
def test_an_empty_trial_answer_never_stops(drawn: tuple[str, ...]) -> None:
    """Trap 4: a lone brace of probability 1 is no answer."""
    stopper = Deer(gate=0).start()
    stopper.observe(cue_checkpoint(9))
    probed = ProbeResult(TRIAL, 9, "".join(drawn), drawn, (0.0,) * len(drawn), True, 0.0, 0.0)
    assert stopper.observe(probed) is None


def test_an_end_of_turn_is_no_answer() -> None:
    """Trap 4: a model that ends at once draws an end token, which is no text and no answer."""
    stopper = Deer(gate=0).start()
    stopper.observe(cue_checkpoint(9))
    ended = ProbeResult(TRIAL, 9, "", ("<|im_end|>",), (-0.001,), True, 0.0, 0.0)
    assert stopper.observe(ended) is None


@pytest.mark.parametrize(
    "event", [interval_checkpoint(50), reasoning_chunk("Wait", 3, position=50)]
)
def test_it_looks_at_cues_only(event: Any) -> None:
    """Other checkpoints and pieces of the trace bring no probe."""
    assert Deer().start().observe(event) is None


def test_probes_that_say_no_are_followed_by_growing_gaps() -> None:
    """After the n-th no, min(gap * backoff ** (n - 1), max_gap) tokens are passed over."""
    stopper = Deer(gap=10, backoff=2, max_gap=30).start()
    looked = [
        at
        for at in range(0, 140, 5)
        if stopper.observe(cue_checkpoint(at)) and not _no(stopper, at)
    ]
    assert looked == [0, 10, 30, 60, 90, 120]


def _no(stopper: Stopper, position: int) -> Any:
    return stopper.observe(probe_result(position, "7", 0.1, GATE, finished=False))


def test_the_first_gap_is_bounded_too() -> None:
    """``max_gap`` holds for the first gap as for the later ones."""
    stopper = Deer(gap=1000, max_gap=10).start()
    stopper.observe(cue_checkpoint(0))
    _no(stopper, 0)
    assert stopper.observe(cue_checkpoint(10)) == GATE


def test_a_probe_that_failed_says_no() -> None:
    """An error at one cue does not become a probe at every following one."""
    stopper = Deer(gap=10).start()
    stopper.observe(cue_checkpoint(0))
    assert stopper.observe(probe_failed(0, GATE)) is None
    assert stopper.observe(cue_checkpoint(9)) is None
    assert stopper.observe(cue_checkpoint(10)) == GATE


def test_it_does_not_stop_whatever_happens() -> None:
    """Trap 6: over a long trace of unsure answers it never says stop."""
    stopper = Deer(gap=0).start()
    answers = [judged(stopper, at, 0.8) for at in range(0, 5000, 10)]
    assert answers == [None] * 500


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0},
        {"threshold": 1},
        {"threshold": math.nan},
        {"gate": -0.1},
        {"gate": 1.1},
        {"max_tokens": 0},
        {"gap": -1},
        {"max_gap": -1},
        {"backoff": 0.5},
        {"backoff": math.nan},
        {"backoff": math.inf},
    ],
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """A threshold outside (0, 1), a negative gap and their like are refused."""
    with pytest.raises(ValueError, match="must"):
        replace(Deer(), **options)
