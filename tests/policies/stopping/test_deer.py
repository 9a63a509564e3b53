"""``deer`` stops at a cue if its trial answer is confident, and for no other reason."""

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


def reply_to_answer(stopper: Stopper, position: int, confidence: float) -> Any:
    """Its reply to a trial answer at a cue; None if it does not probe there."""
    if stopper.observe(cue_checkpoint(position)) != GATE:
        return None
    assert stopper.observe(probe_result(position, "7", 0.9, GATE, finished=False)) == TRIAL
    return stopper.observe(probe_result(position, "7", confidence, TRIAL))


def test_it_sends_a_one_token_probe_then_requests_the_answer_then_stops() -> None:
    """The stop is at the cue, with the confidence of the trial answer."""
    stop = reply_to_answer(Deer().start(), 40, 0.97)
    assert stop == Stop("confident", 40, pytest.approx(0.97))


@pytest.mark.parametrize(("confidence", "stops"), [(0.96, True), (0.94, False), (0.5, False)])
def test_only_a_confident_answer_stops(confidence: float, stops: bool) -> None:
    """The rule is C > threshold."""
    assert isinstance(reply_to_answer(Deer().start(), 40, confidence), Stop) == stops


def test_a_confidence_equal_to_the_threshold_does_not_stop() -> None:
    """The rule is C > threshold, not C >= threshold."""
    stopper = Deer(threshold=0.5, max_tokens=1).start()
    answer = ProbeResult(GATE, 3, "7", ("7",), (math.log(0.5),), True, 0.0, 0.0)
    stopper.observe(cue_checkpoint(3))
    assert math.exp(answer.logprobs[0]) == 0.5
    assert stopper.observe(answer) is None


def test_the_gate_skips_a_trial_answer_that_could_not_pass() -> None:
    """If the first token is below threshold ** max_tokens, C cannot reach the threshold."""
    stopper = Deer(threshold=0.95, max_tokens=20).start()
    stopper.observe(cue_checkpoint(9))
    assert stopper.observe(probe_result(9, "7", 0.95**20 - 0.01, GATE, finished=False)) is None


def test_a_one_token_probe_without_log_probabilities_does_not_pass() -> None:
    """A probe that generated nothing is followed by no trial answer."""
    stopper = Deer().start()
    stopper.observe(cue_checkpoint(9))
    assert stopper.observe(ProbeResult(GATE, 9, "", (), (), True, 0.0, 0.0)) is None


def test_without_a_gate_the_trial_answer_is_requested_at_once() -> None:
    """``gate=0`` is the paper's rule."""
    stopper = Deer(gate=0).start()
    assert stopper.observe(cue_checkpoint(9)) == TRIAL
    assert stopper.observe(probe_result(9, "7", 0.99, TRIAL)) == Stop(
        "confident", 9, pytest.approx(0.99)
    )


@pytest.mark.parametrize("generated", [("}",), (" ", "}"), ()])
def test_an_empty_trial_answer_never_stops(generated: tuple[str, ...]) -> None:
    """Trap 4: a lone brace of probability 1 is no answer."""
    stopper = Deer(gate=0).start()
    stopper.observe(cue_checkpoint(9))
    result = ProbeResult(
        TRIAL, 9, "".join(generated), generated, (0.0,) * len(generated), True, 0.0, 0.0
    )
    assert stopper.observe(result) is None


def test_an_end_of_turn_is_no_answer() -> None:
    """Trap 4: a model that ends at once generates an end token, which has no text."""
    stopper = Deer(gate=0).start()
    stopper.observe(cue_checkpoint(9))
    ended = ProbeResult(TRIAL, 9, "", ("<|im_end|>",), (-0.001,), True, 0.0, 0.0)
    assert stopper.observe(ended) is None


@pytest.mark.parametrize(
    "event", [interval_checkpoint(50), reasoning_chunk("Wait", 3, position=50)]
)
def test_it_probes_at_cues_only(event: Any) -> None:
    """Other checkpoints and chunks of the trace lead to no probe."""
    assert Deer().start().observe(event) is None


def test_probes_without_a_stop_are_followed_by_growing_gaps() -> None:
    """After the n-th one in a row, min(gap * backoff ** (n - 1), max_gap) tokens are skipped."""
    stopper = Deer(gap=10, backoff=2, max_gap=30).start()
    probed = [
        at
        for at in range(0, 140, 5)
        if stopper.observe(cue_checkpoint(at)) and not _answer_gate(stopper, at)
    ]
    assert probed == [0, 10, 30, 60, 90, 120]


def _answer_gate(stopper: Stopper, position: int) -> Any:
    return stopper.observe(probe_result(position, "7", 0.1, GATE, finished=False))


def test_the_first_gap_is_limited_too() -> None:
    """``max_gap`` applies to the first gap as to later ones."""
    stopper = Deer(gap=1000, max_gap=10).start()
    stopper.observe(cue_checkpoint(0))
    _answer_gate(stopper, 0)
    assert stopper.observe(cue_checkpoint(10)) == GATE


def test_a_failed_probe_starts_a_gap() -> None:
    """An error at one cue does not lead to a probe at each of the following ones."""
    stopper = Deer(gap=10).start()
    stopper.observe(cue_checkpoint(0))
    assert stopper.observe(probe_failed(0, GATE)) is None
    assert stopper.observe(cue_checkpoint(9)) is None
    assert stopper.observe(cue_checkpoint(10)) == GATE


def test_uncertain_answers_never_stop_it() -> None:
    """Trap 6: over a long trace."""
    stopper = Deer(gap=0).start()
    answers = [reply_to_answer(stopper, at, 0.8) for at in range(0, 5000, 10)]
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
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    """A threshold outside (0, 1), a negative gap and the like."""
    with pytest.raises(ValueError, match="must"):
        replace(Deer(), **options)
