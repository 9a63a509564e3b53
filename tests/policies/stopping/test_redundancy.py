"""``redundancy`` stops where a step repeats earlier ones and the trial answer holds."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.events import Embed, EmbeddingFailed, EmbeddingResult, Probe, Stop
from adjourn.policies.policy import Stopper
from adjourn.policies.stopping.redundancy import Redundancy, RedundancyStopper
from tests.policies.session_helpers import (
    boundary_checkpoint,
    cue_checkpoint,
    probe_failed,
    probe_result,
)

NEW = "one two three four five six"
POLICY = Redundancy(min_steps=2)


class ScriptedSimilarity:
    """Steps are as alike as their text says."""

    def compare_and_add(self, step: str) -> float:
        return float(step)


def judged(stopper: Stopper, step: str, answer: str, certainty: float) -> Any:
    """What it says at a step, or "not asked" where it draws no answer."""
    if stopper.observe(boundary_checkpoint("step", 40, step)) != Probe():
        return "not asked"
    return stopper.observe(probe_result(40, answer, certainty))


def test_a_sure_answer_at_a_step_that_repeats() -> None:
    """Similar, then confident: stop there."""
    stopper = POLICY.start()
    assert judged(stopper, NEW, "7", 0.99) == "not asked"
    assert judged(stopper, NEW, "7", 0.99) == Stop("redundant", 40, pytest.approx(0.99))


def test_a_new_step_draws_no_answer() -> None:
    """Whatever the model is sure of: it is still getting somewhere."""
    stopper = POLICY.start()
    judged(stopper, NEW, "7", 0.99)
    assert judged(stopper, "seven eight nine ten", "7", 0.99) == "not asked"


@pytest.mark.parametrize(("alike", "asks"), [("0.35", True), ("0.349", False)])
def test_the_threshold_of_similarity(alike: str, asks: bool) -> None:
    """Asked from ``similarity`` on, whoever measures it."""
    stopper = RedundancyStopper(Redundancy(min_steps=1), ScriptedSimilarity())
    assert (judged(stopper, alike, "7", 0.1) != "not asked") == asks


def test_not_before_min_steps() -> None:
    """The paper's ten, by default."""
    stopper = RedundancyStopper(Redundancy(), ScriptedSimilarity())
    said = [judged(stopper, "1.0", "7", 0.1) for _ in range(10)]
    assert said == ["not asked"] * 9 + [None]


@pytest.mark.parametrize(
    ("first", "second", "stops"),
    [
        (("7", 0.9), ("7", 0.88), True),
        (("7", 0.9), ("7.0", 0.95), True),
        (("7", 0.9), ("7", 0.86), False),  # sure of it no longer
        (("7", 0.9), ("8", 0.9), False),
        (("", 0.9), ("", 0.9), False),  # trap 4
    ],
)
def test_two_equal_answers(
    first: tuple[str, float], second: tuple[str, float], stops: bool
) -> None:
    """Below ``confidence`` two in a row must agree, and the second be hardly less sure."""
    stopper = RedundancyStopper(POLICY, ScriptedSimilarity())
    judged(stopper, "1.0", "7", 0.5)
    assert judged(stopper, "1.0", *first) is None
    said = judged(stopper, "1.0", *second)
    assert said == (Stop("redundant-stable", 40, pytest.approx(second[1])) if stops else None)


def test_a_hesitant_answer_is_none() -> None:
    """Trap 5: "7 wait" is neither sure nor agrees with anything."""
    stopper = RedundancyStopper(Redundancy(min_steps=1), ScriptedSimilarity())
    assert judged(stopper, "1.0", "7 wait", 0.99) is None
    assert judged(stopper, "1.0", "7 wait", 0.99) is None


def test_other_events_say_nothing() -> None:
    """Trap 6: cues, other ends and probes that failed never stop it."""
    stopper = RedundancyStopper(Redundancy(min_steps=1), ScriptedSimilarity())
    events = [
        cue_checkpoint(9),
        boundary_checkpoint("sentence", 9, "1.0"),
        boundary_checkpoint("paragraph", 9),
        probe_failed(9),
    ] * 50
    assert [stopper.observe(event) for event in events] == [None] * 200


def embedded(stopper: Stopper, step: str, *vector: float) -> Any:
    """What it says to the vector of a step that has just ended."""
    asked = stopper.observe(boundary_checkpoint("step", 40, step))
    assert asked == Embed(step)
    return stopper.observe(EmbeddingResult(asked, vector, 40, 0.01, 0.0))


BY_EMBEDDING = Redundancy(by="embedding", similarity=0.9, min_steps=2)


def test_by_embedding_each_step_is_embedded() -> None:
    """One that points where an earlier one did draws a trial answer, and the answer decides."""
    stopper = BY_EMBEDDING.start()
    assert embedded(stopper, "A", 1.0, 0.0) is None
    assert embedded(stopper, "B", 0.0, 2.0) is None
    assert embedded(stopper, "A again", 3.0, 0.1) == Probe()
    assert stopper.observe(probe_result(40, "7", 0.99)) == Stop(
        "redundant", 40, pytest.approx(0.99)
    )


def test_a_step_that_was_not_embedded_counts_and_is_forgotten() -> None:
    """Neither it nor a later one is compared for it; the next goes on as usual."""
    stopper = BY_EMBEDDING.start()
    asked = stopper.observe(boundary_checkpoint("step", 40, "A"))
    assert stopper.observe(EmbeddingFailed(asked, 40, "timeout", 0.0)) is None
    assert embedded(stopper, "A", 1.0, 0.0) is None
    assert embedded(stopper, "A", 1.0, 0.0) == Probe()


def test_only_by_embedding_needs_an_embedder() -> None:
    """What the server refuses where none is configured."""
    assert (BY_EMBEDDING.needs.embeddings, POLICY.needs.embeddings) == (True, False)


@pytest.mark.parametrize(
    "options",
    [
        {"similarity": 0},
        {"similarity": 1.1},
        {"confidence": 0},
        {"drop": -0.1},
        {"min_steps": 0},
        {"max_tokens": 0},
    ],
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """Shares outside [0, 1] and counts of nothing are refused."""
    with pytest.raises(ValueError, match="must"):
        Redundancy(**options)
