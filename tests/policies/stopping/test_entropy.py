"""``entropy`` stops when the entropy after the closing sequence has settled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import Probe, Stop
from adjourn.policies.evidence.uncertainty import token_entropy
from adjourn.policies.stopping.entropy import Entropy
from tests.policies.session_helpers import (
    boundary_checkpoint,
    cue_checkpoint,
    interval_checkpoint,
    probe_failed,
    probe_result,
)

PROBE = Probe(inducer="", max_tokens=1, top_logprobs=20)


def two_token_logprobs(probability: float) -> tuple[tuple[float, ...], ...]:
    """Log-probabilities of two tokens, the first of this probability."""
    return ((math.log(probability), math.log1p(-probability)),)


def stops(policy: Entropy, probabilities: Sequence[float]) -> int | None:
    """The number of probes after which it stops, if they return these probabilities."""
    stopper = policy.start()
    for count, probability in enumerate(probabilities, 1):
        assert stopper.observe(boundary_checkpoint(policy.at, count)) == PROBE
        if (
            command := stopper.observe(
                probe_result(count, "x", 0.9, PROBE, top_logprobs=two_token_logprobs(probability))
            )
        ) is not None:
            assert command == Stop("settled", count)
            return count
    return None


def oracle(policy: Entropy, probabilities: Sequence[float]) -> int | None:
    """The rule on the whole series: weights (1 - alpha) ** age, where the first probe has the
    weight of all that would come before it."""
    values = [token_entropy(two_token_logprobs(probability)[0]) for probability in probabilities]
    for probes in range(math.ceil(4 / policy.alpha), len(values) + 1):
        weights = [policy.alpha * (1 - policy.alpha) ** age for age in range(probes)][::-1]
        weights[0] = (1 - policy.alpha) ** (probes - 1)
        mean = sum(w * v for w, v in zip(weights, values, strict=False))
        if sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=False)) < policy.delta:
            return probes
    return None


@given(
    st.sampled_from([0.2, 0.5, 0.9]),
    st.lists(st.sampled_from([0.5, 0.51, 0.9, 0.99]), max_size=40),
)
def test_the_running_variance_equals_the_oracles(alpha: float, probabilities: list[float]) -> None:
    """Updated with each probe, mean and variance are the exponentially weighted ones."""
    policy = Entropy(alpha=alpha, delta=1e-3)
    assert stops(policy, probabilities) == oracle(policy, probabilities)


@pytest.mark.parametrize(("alpha", "probes"), [(0.2, 20), (0.5, 8), (0.3, 14)])
def test_it_probes_at_least_four_over_alpha_times(alpha: float, probes: int) -> None:
    """Even if the entropy never changes."""
    assert stops(Entropy(alpha=alpha), [0.7] * 50) == probes


def test_a_changing_entropy_never_stops_it() -> None:
    """Trap 6: an entropy that goes up and down has not settled."""
    assert stops(Entropy(), [0.5, 0.99] * 200) is None


@pytest.mark.parametrize(
    "event",
    [
        cue_checkpoint(9),
        interval_checkpoint(9),
        boundary_checkpoint("sentence", 9),
        boundary_checkpoint("step", 9),
    ],
)
def test_it_probes_at_paragraphs_only(event: Any) -> None:
    """Or at sentences, with ``at="sentence"``."""
    assert Entropy().start().observe(event) is None
    assert Entropy(at="sentence").start().observe(boundary_checkpoint("sentence", 9)) == PROBE
    assert Entropy(at="sentence").needs.sentences


def test_a_probe_without_a_result_does_not_count() -> None:
    """Nor does a result without log-probabilities."""
    stopper = Entropy(alpha=0.9).start()
    for _ in range(50):
        assert stopper.observe(probe_result(9, "x", 0.9, PROBE)) is None
        assert stopper.observe(probe_failed(9, PROBE)) is None


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [((0.0,), 0.0), ((math.log(0.5),) * 2, math.log(2)), ((0.0, -9999.0), 0.0), ((), 0.0)],
)
def test_the_entropy_of_a_distribution(logprobs: tuple[float, ...], expected: float) -> None:
    """In nats; an impossible token adds nothing."""
    assert token_entropy(logprobs) == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": 1}, {"delta": 0}, {"delta": math.nan}])
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    """Weights outside (0, 1), a variance that is not positive."""
    with pytest.raises(ValueError, match="must"):
        Entropy(**options)
