"""``redundancy`` stops at a step that repeats earlier ones, if the trial answer is confident."""

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
    """The text of a step is its similarity."""

    def compare_and_add(self, step: str) -> float:
        return float(step)


def reply_at_step(stopper: Stopper, step: str, answer: str, confidence: float) -> Any:
    """Its reply to a trial answer at a step; "no probe" if it requests none."""
    if stopper.observe(boundary_checkpoint("step", 40, step)) != Probe():
        return "no probe"
    return stopper.observe(probe_result(40, answer, confidence))


def test_a_confident_answer_at_a_repeated_step_stops() -> None:
    """The stop is at the end of that step."""
    stopper = POLICY.start()
    assert reply_at_step(stopper, NEW, "7", 0.99) == "no probe"
    assert reply_at_step(stopper, NEW, "7", 0.99) == Stop("redundant", 40, pytest.approx(0.99))


def test_a_new_step_requests_no_trial_answer() -> None:
    """However confident the model would be."""
    stopper = POLICY.start()
    reply_at_step(stopper, NEW, "7", 0.99)
    assert reply_at_step(stopper, "seven eight nine ten", "7", 0.99) == "no probe"


@pytest.mark.parametrize(("similarity", "probes"), [("0.35", True), ("0.349", False)])
def test_the_similarity_is_a_threshold(similarity: str, probes: bool) -> None:
    """A trial answer is requested from ``similarity`` on, whichever measure is used."""
    stopper = RedundancyStopper(Redundancy(min_steps=1), ScriptedSimilarity())
    assert (reply_at_step(stopper, similarity, "7", 0.1) != "no probe") == probes


def test_it_does_not_probe_before_min_steps() -> None:
    """By default ten, as in the paper."""
    stopper = RedundancyStopper(Redundancy(), ScriptedSimilarity())
    replies = [reply_at_step(stopper, "1.0", "7", 0.1) for _ in range(10)]
    assert replies == ["no probe"] * 9 + [None]


@pytest.mark.parametrize(
    ("first", "second", "stops"),
    [
        (("7", 0.9), ("7", 0.88), True),
        (("7", 0.9), ("7.0", 0.95), True),
        (("7", 0.9), ("7", 0.86), False),  # less confident by more than ``drop``
        (("7", 0.9), ("8", 0.9), False),
        (("", 0.9), ("", 0.9), False),  # trap 4
    ],
)
def test_two_equal_answers_stop(
    first: tuple[str, float], second: tuple[str, float], stops: bool
) -> None:
    """Below ``confidence``, two in a row must agree, the second at most ``drop`` less confident."""
    stopper = RedundancyStopper(POLICY, ScriptedSimilarity())
    reply_at_step(stopper, "1.0", "7", 0.5)
    assert reply_at_step(stopper, "1.0", *first) is None
    reply = reply_at_step(stopper, "1.0", *second)
    assert reply == (Stop("redundant-stable", 40, pytest.approx(second[1])) if stops else None)


def test_a_hesitant_answer_does_not_count() -> None:
    """Trap 5: "7 wait" is not confident and equals no other answer."""
    stopper = RedundancyStopper(Redundancy(min_steps=1), ScriptedSimilarity())
    assert reply_at_step(stopper, "1.0", "7 wait", 0.99) is None
    assert reply_at_step(stopper, "1.0", "7 wait", 0.99) is None


def test_other_events_never_stop_it() -> None:
    """Trap 6: cues, the ends of sentences and paragraphs, and failed probes."""
    stopper = RedundancyStopper(Redundancy(min_steps=1), ScriptedSimilarity())
    events = [
        cue_checkpoint(9),
        boundary_checkpoint("sentence", 9, "1.0"),
        boundary_checkpoint("paragraph", 9),
        probe_failed(9),
    ] * 50
    assert [stopper.observe(event) for event in events] == [None] * 200


def reply_to_vector(stopper: Stopper, step: str, *vector: float) -> Any:
    """Its reply to the vector of a step that has just ended."""
    embed = stopper.observe(boundary_checkpoint("step", 40, step))
    assert embed == Embed(step)
    return stopper.observe(EmbeddingResult(embed, vector, 40, 0.01, 0.0))


BY_EMBEDDING = Redundancy(by="embedding", similarity=0.9, min_steps=2)


def test_by_embedding_each_step_is_embedded() -> None:
    """A vector close to an earlier one leads to a trial answer, which decides."""
    stopper = BY_EMBEDDING.start()
    assert reply_to_vector(stopper, "A", 1.0, 0.0) is None
    assert reply_to_vector(stopper, "B", 0.0, 2.0) is None
    assert reply_to_vector(stopper, "A again", 3.0, 0.1) == Probe()
    assert stopper.observe(probe_result(40, "7", 0.99)) == Stop(
        "redundant", 40, pytest.approx(0.99)
    )


def test_a_step_without_a_vector_counts_but_is_not_compared() -> None:
    """No later step is compared with it; the steps after it continue as usual."""
    stopper = BY_EMBEDDING.start()
    embed = stopper.observe(boundary_checkpoint("step", 40, "A"))
    assert stopper.observe(EmbeddingFailed(embed, 40, "timeout", 0.0)) is None
    assert reply_to_vector(stopper, "A", 1.0, 0.0) is None
    assert reply_to_vector(stopper, "A", 1.0, 0.0) == Probe()


def test_only_by_embedding_needs_an_embedder() -> None:
    """The gateway refuses that option if none is configured."""
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
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    """Probabilities outside [0, 1] and counts of 0."""
    with pytest.raises(ValueError, match="must"):
        Redundancy(**options)
