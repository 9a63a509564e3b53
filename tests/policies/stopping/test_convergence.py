"""``convergence`` stops when trial answers have stopped changing, and two conditions more hold."""

from __future__ import annotations

import math
from typing import Any

import pytest

from adjourn.policies.events import Probe, ProbeFailed, Stop
from adjourn.policies.policy import Needs
from adjourn.policies.stopping.convergence import Convergence
from tests.policies.session_helpers import (
    cue_checkpoint,
    interval_checkpoint,
    probe_failed,
    probe_result,
)

POLICY = Convergence(window=3, every=10, min_tokens=0, floor=0.8)


def said(policy: Convergence, *answers: Any) -> list[Any]:
    """What it says to each answer: a text, (text, certainty), or None for a probe that failed."""
    stopper, verdicts = policy.start(), []
    every = policy.window_and_interval[1]
    for index, answer in enumerate(answers, 1):
        position = index * every
        assert stopper.observe(interval_checkpoint(position)) == Probe(max_tokens=20)
        text, certainty = answer if isinstance(answer, tuple) else (answer, 0.9)
        event = probe_failed(position) if text is None else probe_result(position, text, certainty)
        verdicts.append(stopper.observe(event))
    return verdicts


def test_it_stops_when_the_window_agrees() -> None:
    """Three equal answers, by meaning, and not one earlier."""
    stop = Stop("converged", 50, pytest.approx(0.9))
    assert said(POLICY, "1", "2", "0.5", "1/2", "\\frac{1}{2}") == [None] * 4 + [stop]


@pytest.mark.parametrize(
    "answers",
    [
        ("7", "8", "7", "8", "7", "8"),
        ("7", "7", "8", "8", "7", "7"),
        ("", "", "", ""),
        ("7", "7", "", "7", "7"),
        ("7", "7", "7 wait", "7", "7"),
        ("maybe 7", "maybe 7", "maybe 7", "maybe 7"),
        ("7", "7", None, "7", "7"),
        (("7", 0.7), ("7", 0.7), ("7", 0.7), ("7", 0.7)),
    ],
)
def test_it_does_not_stop_whatever_happens(answers: tuple[Any, ...]) -> None:
    """Trap 6: answers that change, are empty, hesitant, missing or unsure never stop it."""
    assert said(POLICY, *answers) == [None] * len(answers)


def test_the_last_answers_confidence_decides() -> None:
    """An unsure answer puts the stop off until an equal one is sure."""
    answers = [("7", 0.9), ("7", 0.9), ("7", 0.7), ("7", 0.85)]
    assert said(POLICY, *answers)[2:] == [None, Stop("converged", 40, pytest.approx(0.85))]


def test_it_waits_for_the_least_length() -> None:
    """However much they agree, nothing stops before ``min_tokens``."""
    policy = Convergence(window=2, every=10, min_tokens=45)
    verdicts = said(policy, "7", "7", "7", "7", "7")
    assert verdicts == [None] * 4 + [Stop("converged", 50, pytest.approx(0.9))]


def test_a_word_with_a_doubt_inside_is_no_doubt() -> None:
    """Trap 5: "butter" is an answer without a "but"."""
    assert isinstance(said(POLICY, "butter", "butter", "butter")[-1], Stop)


def test_probes_are_spaced() -> None:
    """Of checkpoints that come more often, it takes one every ``every`` tokens."""
    stopper = POLICY.start()
    asked = [at for at in range(1, 50) if stopper.observe(cue_checkpoint(at)) is not None]
    assert asked == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("effort", "expected"),
    [("mild", (8, 64)), ("low", (5, 64)), ("mid", (3, 64)), ("high", (2, 64)), ("max", (2, 32))],
)
def test_efforts(effort: Any, expected: tuple[int, int]) -> None:
    """An effort is a window and a spacing; the engine's checkpoints follow from it."""
    assert Convergence(effort).window_and_interval == expected
    asked = Needs(interval=expected[1], probes=True, inducers=frozenset({"answer"}))
    assert Convergence(effort).needs == asked


def test_a_setting_goes_before_the_effort() -> None:
    """What is set by hand replaces its half of the effort."""
    assert Convergence("max", window=7).window_and_interval == (7, 32)
    assert Convergence("max", every=7).window_and_interval == (2, 7)


@pytest.mark.parametrize(
    "options",
    [
        {"effort": "extreme"},
        {"window": 1},
        {"window": 0},
        {"every": 0},
        {"every": -1},
        {"floor": 1},
        {"floor": -0.1},
        {"floor": math.nan},
        {"min_tokens": -1},
        {"max_tokens": 0},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    """What cannot be meant is refused, zero included, and not taken for the default."""
    with pytest.raises(ValueError, match="must"):
        Convergence(**options)


def test_a_failed_probe_is_no_answer_that_agrees() -> None:
    """A window never spans a probe that brought nothing."""
    stopper = POLICY.start()
    for position in (10, 20):
        stopper.observe(interval_checkpoint(position))
        stopper.observe(probe_result(position))
    stopper.observe(interval_checkpoint(30))
    assert stopper.observe(ProbeFailed(Probe(), 30, "timeout", 0.0)) is None
    stopper.observe(interval_checkpoint(40))
    assert stopper.observe(probe_result(40)) is None
