"""``utility`` stops when the trial answer has not become more certain for several checkpoints."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import Probe, Stop
from adjourn.policies.stopping.utility import Utility
from tests.policies.session_helpers import (
    boundary_checkpoint,
    cue_checkpoint,
    probe_failed,
    probe_result,
)

PROBE = Probe(top_logprobs=20)
SURE = (0.0,)


def two_token_logprobs(probability: float) -> tuple[float, ...]:
    """Log-probabilities of two tokens, the first of this probability."""
    return (math.log(probability), math.log1p(-probability)) if probability < 1 else SURE


def stops(policy: Utility, probabilities: list[float], answer: str = "7") -> int | None:
    """The number of probes after which it stops, if all tokens of the answers have these
    probabilities."""
    stopper = policy.start()
    for count, probability in enumerate(probabilities, 1):
        assert stopper.observe(boundary_checkpoint(policy.at, count)) == PROBE
        top = (two_token_logprobs(probability),) * (len(answer) + 1)
        if (
            stop := stopper.observe(probe_result(count, answer, 0.9, PROBE, top_logprobs=top))
        ) is not None:
            assert stop == Stop("no-gain", count)
            return count
    return None


@given(st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), max_size=20), st.integers(1, 4))
def test_it_stops_after_patience_probes_without_a_gain(
    probabilities: list[float], patience: int
) -> None:
    """A gain is an entropy below the lowest one so far."""
    gains = [
        probability > max(probabilities[:at], default=0.0)
        for at, probability in enumerate(probabilities)
    ]
    rest = (n for n in range(patience + 1, len(gains) + 1) if not any(gains[n - patience : n]))
    assert stops(Utility(patience=patience), probabilities) == next(rest, None)


def test_an_answer_that_becomes_more_certain_never_stops_it() -> None:
    """Trap 6: the trace continues as long as its entropy falls."""
    assert stops(Utility(tolerance=0), [1 - 0.4 * 0.9**n for n in range(100)]) is None


def test_a_gain_within_the_tolerance_does_not_count() -> None:
    """Rounding is no gain."""
    probabilities = [0.5 + n * 1e-6 for n in range(9)]
    assert stops(Utility(), probabilities) == 4
    assert stops(Utility(tolerance=0), probabilities) is None


def test_only_the_answers_own_tokens_count() -> None:
    """Not the tokens that the model generates after it."""
    stopper = Utility(patience=1).start()
    for probability, after in ((0.6, 1.0), (0.7, 0.5)):
        top = (
            two_token_logprobs(probability),
            two_token_logprobs(probability),
            two_token_logprobs(after),
        )
        result = probe_result(9, "7", 0.9, PROBE, top_logprobs=top)
        assert stopper.observe(result) is None
    assert stopper.observe(
        probe_result(9, "7", 0.9, PROBE, top_logprobs=(two_token_logprobs(0.7),) * 2)
    ) == Stop("no-gain", 9)


@pytest.mark.parametrize("answer", ["", " "])
def test_an_empty_answer_does_not_count(answer: str) -> None:
    """Trap 4: it is not an answer of the same entropy."""
    assert stops(Utility(patience=1), [0.9] * 9, answer) is None


@pytest.mark.parametrize(
    "event",
    [cue_checkpoint(9), boundary_checkpoint("sentence", 9), probe_failed(9), probe_result(9)],
)
def test_other_events_never_stop_it(event: Any) -> None:
    """Nor does a result without log-probabilities, however often."""
    stopper = Utility(patience=1).start()
    assert [stopper.observe(event) for _ in range(9)] == [None] * 9


def test_it_can_probe_at_sentence_ends() -> None:
    """For traces without paragraphs."""
    assert Utility(at="sentence").needs.sentences
    assert stops(Utility(at="sentence"), [0.9] * 9) == 4


@pytest.mark.parametrize("options", [{"patience": 0}, {"max_tokens": 0}, {"tolerance": -1}])
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    """A patience of 0 checkpoints, probes without tokens, a negative tolerance."""
    with pytest.raises(ValueError, match="at least"):
        Utility(**options)
