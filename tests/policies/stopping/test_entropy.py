"""``entropy`` stops when the entropy behind the closing sequence has settled."""

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


def told(share: float) -> tuple[tuple[float, ...], ...]:
    """Two tokens, one of which has this probability."""
    return ((math.log(share), math.log1p(-share)),)


def stops(policy: Entropy, shares: Sequence[float]) -> int | None:
    """After how many looks it stops, the next token's probability being each of ``shares``."""
    stopper = policy.start()
    for look, share in enumerate(shares, 1):
        assert stopper.observe(boundary_checkpoint(policy.at, look)) == PROBE
        if (
            command := stopper.observe(
                probe_result(look, "x", 0.9, PROBE, top_logprobs=told(share))
            )
        ) is not None:
            assert command == Stop("settled", look)
            return look
    return None


def oracle(policy: Entropy, shares: Sequence[float]) -> int | None:
    """The rule on the whole series: weights (1 - alpha) ** age, the first look standing for all
    that were before it."""
    values = [token_entropy(told(share)[0]) for share in shares]
    for looks in range(math.ceil(4 / policy.alpha), len(values) + 1):
        weights = [policy.alpha * (1 - policy.alpha) ** age for age in range(looks)][::-1]
        weights[0] = (1 - policy.alpha) ** (looks - 1)
        mean = sum(w * v for w, v in zip(weights, values, strict=False))
        if sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=False)) < policy.delta:
            return looks
    return None


@given(
    st.sampled_from([0.2, 0.5, 0.9]),
    st.lists(st.sampled_from([0.5, 0.51, 0.9, 0.99]), max_size=40),
)
def test_the_running_variance_is_the_series_own(alpha: float, shares: list[float]) -> None:
    """Followed look by look, mean and variance are the exponentially weighted ones."""
    policy = Entropy(alpha=alpha, delta=1e-3)
    assert stops(policy, shares) == oracle(policy, shares)


@pytest.mark.parametrize(("alpha", "looks"), [(0.2, 20), (0.5, 8), (0.3, 14)])
def test_it_looks_four_over_alpha_times_at_least(alpha: float, looks: int) -> None:
    """However still it is from the beginning."""
    assert stops(Entropy(alpha=alpha), [0.7] * 50) == looks


def test_what_moves_never_stops() -> None:
    """Trap 6: an entropy that goes up and down for ever is not settled."""
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
def test_it_looks_at_paragraphs_only(event: Any) -> None:
    """Or at sentences, where it is told so."""
    assert Entropy().start().observe(event) is None
    assert Entropy(at="sentence").start().observe(boundary_checkpoint("sentence", 9)) == PROBE
    assert Entropy(at="sentence").needs.sentences


def test_a_look_that_brought_nothing_is_none() -> None:
    """A failed probe, or one without log-probabilities, neither counts nor settles anything."""
    stopper = Entropy(alpha=0.9).start()
    for _ in range(50):
        assert stopper.observe(probe_result(9, "x", 0.9, PROBE)) is None
        assert stopper.observe(probe_failed(9, PROBE)) is None


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [((0.0,), 0.0), ((math.log(0.5),) * 2, math.log(2)), ((0.0, -9999.0), 0.0), ((), 0.0)],
)
def test_entropy(logprobs: tuple[float, ...], expected: float) -> None:
    """In nats; a token that cannot come adds nothing."""
    assert token_entropy(logprobs) == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": 1}, {"delta": 0}, {"delta": math.nan}])
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """Weights outside (0, 1) and a variance below nothing are refused."""
    with pytest.raises(ValueError, match="must"):
        Entropy(**options)
