"""``learned`` is a logistic rule over what a probe shows, and every feature is what it says."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import Probe, Stop
from adjourn.policies.stopping.learned import FEATURE_NAMES, Learned, ProbeFeatures
from tests.policies.session_helpers import cue_checkpoint, probe_failed, probe_result

NEVER = Learned(threshold=1.0, bias=-1e9, gap=0)
WEIGHTS = st.floats(-5, 5)


def seen(*answers: tuple[int, str, float]) -> list[ProbeFeatures | None]:
    """What a stopper that never stops sees at cues there, with these answers."""
    stopper, looks = NEVER.start(), []
    for position, answer, certainty in answers:
        asked = stopper.observe(cue_checkpoint(position))
        assert asked == Probe(max_tokens=20)
        assert stopper.observe(probe_result(position, answer, certainty, asked)) is None
        looks.append(stopper.last_features)
    return looks


def test_what_is_seen() -> None:
    """Agreement in a row, changes, the place and the number of the cue."""
    looks = seen((15, "7", 0.5), (31, "7.0", 0.5), (63, "8", 0.9))
    first, second, third = looks
    assert first == ProbeFeatures(0.0, 0.0, 0.0, 0.0, 4.0, 1.0, 0.0, 0.0)
    assert second is not None
    assert third is not None
    assert (second.agreement, second.changes, second.position) == (1.0, 0.0, 5.0)
    assert (third.agreement, third.changes, third.cues) == (0.0, 1.0, 2.0)
    assert third.confidence == pytest.approx(math.log(9))


def test_certainty_is_bounded_and_emptiness_is_nothing() -> None:
    assert seen((9, "", 1.0)) == [None]
    (sure,) = seen((9, "7", 1.0))
    assert sure is not None
    assert (sure.confidence, sure.first) == (8.0, 8.0)


def test_doubt_within_an_answer_is_seen() -> None:
    (look,) = seen((9, "7, wait", 0.9))
    assert look is not None
    assert look.hesitant == 1.0


def test_entropy_is_asked_for_where_it_has_a_weight() -> None:
    """The mean over the answer's own tokens, of what was told of each."""
    even, sure = (math.log(0.5),) * 2, (0.0,)
    stopper = replace(NEVER, entropy=0.5).start()
    asked = stopper.observe(cue_checkpoint(9))
    assert asked == Probe(max_tokens=20, top_logprobs=20)
    stopper.observe(probe_result(9, "7", 0.5, asked, top_logprobs=(even, sure, even)))
    assert stopper.last_features is not None
    assert stopper.last_features.entropy == pytest.approx(math.log(2) / 2)
    stopper.observe(cue_checkpoint(10))
    stopper.observe(probe_result(10, "7", 0.5, asked))
    assert stopper.last_features.entropy == 0.0


@given(
    st.lists(WEIGHTS, min_size=8, max_size=8), WEIGHTS, st.lists(WEIGHTS, min_size=8, max_size=8)
)
def test_the_rule(weights: list[float], bias: float, values: list[float]) -> None:
    """p is the logistic of the weighted sum, monotone in each weight's sign."""
    policy = Learned(bias=bias, **dict(zip(FEATURE_NAMES, weights, strict=True)))
    score = bias + sum(w * v for w, v in zip(weights, values, strict=True))
    assert policy.probability(ProbeFeatures(*values)) == pytest.approx(1 / (1 + math.exp(-score)))


@given(st.floats(0.05, 0.999), st.floats(0.05, 1.0))
def test_it_stops_at_its_threshold(certainty: float, threshold: float) -> None:
    """With the weights it comes with, p is the answer's confidence."""
    stopper = Learned(threshold=threshold).start()
    asked = stopper.observe(cue_checkpoint(40))
    assert isinstance(asked, Probe)
    stop = stopper.observe(probe_result(40, "7", certainty, asked))
    if abs(certainty - threshold) > 1e-9:
        assert (stop is not None) == (certainty > threshold)
    if stop is not None:
        assert stop == Stop("learned", 40, pytest.approx(certainty))


def test_pauses_are_deers() -> None:
    stopper = replace(NEVER, gap=10).start()
    asked = stopper.observe(cue_checkpoint(5))
    assert isinstance(asked, Probe)
    stopper.observe(probe_result(5, "7", 0.1, asked))
    assert stopper.observe(cue_checkpoint(14)) is None
    assert stopper.observe(cue_checkpoint(15)) is not None
    stopper.observe(probe_failed(15, reason="price"))
    assert stopper.observe(cue_checkpoint(16)) is not None
    stopper.observe(probe_failed(16, reason="timeout"))
    assert stopper.observe(cue_checkpoint(20)) is None


@pytest.mark.parametrize(
    "options",
    [{"threshold": 0.0}, {"threshold": 1.5}, {"bias": math.nan}, {"cues": math.inf}, {"gap": -1}],
)
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must"):
        Learned(**options)  # type: ignore[arg-type]


def test_every_feature_has_a_weight() -> None:
    policy = Learned(**{name: float(n) for n, name in enumerate(FEATURE_NAMES)})  # type: ignore[arg-type]
    assert policy.weights == tuple(float(n) for n in range(len(FEATURE_NAMES)))
    assert len(astuple(ProbeFeatures(*policy.weights))) == len(FEATURE_NAMES)
