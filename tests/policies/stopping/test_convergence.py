"""``convergence`` stops when trial answers agree, and two more conditions hold."""

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


def replies(policy: Convergence, *answers: Any) -> list[Any]:
    """Its reply to each answer: a text, (text, confidence), or None for a probe that failed."""
    stopper, verdicts = policy.start(), []
    every = policy.window_and_interval[1]
    for index, answer in enumerate(answers, 1):
        position = index * every
        assert stopper.observe(interval_checkpoint(position)) == Probe(max_tokens=20)
        text, confidence = answer if isinstance(answer, tuple) else (answer, 0.9)
        event = probe_failed(position) if text is None else probe_result(position, text, confidence)
        verdicts.append(stopper.observe(event))
    return verdicts


def test_it_stops_when_the_window_agrees() -> None:
    """After three answers of equal meaning, and not one answer earlier."""
    stop = Stop("converged", 50, pytest.approx(0.9))
    assert replies(POLICY, "1", "2", "0.5", "1/2", "\\frac{1}{2}") == [None] * 4 + [stop]


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
def test_answers_that_do_not_agree_never_stop_it(answers: tuple[Any, ...]) -> None:
    """Trap 6: nor do empty, hesitant, missing or uncertain answers."""
    assert replies(POLICY, *answers) == [None] * len(answers)


def test_the_confidence_of_the_last_answer_decides() -> None:
    """After an uncertain answer, it stops at the next equal one that is confident."""
    answers = [("7", 0.9), ("7", 0.9), ("7", 0.7), ("7", 0.85)]
    assert replies(POLICY, *answers)[2:] == [None, Stop("converged", 40, pytest.approx(0.85))]


def test_it_does_not_stop_before_min_tokens() -> None:
    """However many answers agree."""
    policy = Convergence(window=2, every=10, min_tokens=45)
    verdicts = replies(policy, "7", "7", "7", "7", "7")
    assert verdicts == [None] * 4 + [Stop("converged", 50, pytest.approx(0.9))]


def test_a_hesitation_word_within_a_word_does_not_count() -> None:
    """Trap 5: "butter" does not contain the word "but"."""
    assert isinstance(replies(POLICY, "butter", "butter", "butter")[-1], Stop)


def test_probes_are_spaced() -> None:
    """If checkpoints come more often, it probes one every ``every`` tokens."""
    stopper = POLICY.start()
    probed = [at for at in range(1, 50) if stopper.observe(cue_checkpoint(at)) is not None]
    assert probed == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("effort", "expected"),
    [("mild", (8, 64)), ("low", (5, 64)), ("mid", (3, 64)), ("high", (2, 64)), ("max", (2, 32))],
)
def test_an_effort_sets_window_and_interval(effort: Any, expected: tuple[int, int]) -> None:
    """Its needs follow from them."""
    assert Convergence(effort).window_and_interval == expected
    expected_needs = Needs(interval=expected[1], probes=True, inducers=frozenset({"answer"}))
    assert Convergence(effort).needs == expected_needs


def test_an_explicit_option_overrides_the_effort() -> None:
    """The other option still comes from the effort."""
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
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    """Zero too: it does not mean the default."""
    with pytest.raises(ValueError, match="must"):
        Convergence(**options)


def test_a_failed_probe_breaks_the_agreement() -> None:
    """A window with a failed probe never agrees."""
    stopper = POLICY.start()
    for position in (10, 20):
        stopper.observe(interval_checkpoint(position))
        stopper.observe(probe_result(position))
    stopper.observe(interval_checkpoint(30))
    assert stopper.observe(ProbeFailed(Probe(), 30, "timeout", 0.0)) is None
    stopper.observe(interval_checkpoint(40))
    assert stopper.observe(probe_result(40)) is None
