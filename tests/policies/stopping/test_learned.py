"""``learned`` is a logistic rule over the features of a trial answer."""

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
    """The features that a stopper sees at cues with these (position, answer, probability)."""
    stopper, features = NEVER.start(), []
    for position, answer, probability in answers:
        probe = stopper.observe(cue_checkpoint(position))
        assert probe == Probe(max_tokens=20)
        assert stopper.observe(probe_result(position, answer, probability, probe)) is None
        features.append(stopper.last_features)
    return features


def test_the_features_of_successive_answers() -> None:
    """Agreement in a row, changes, the position, and the number of cues."""
    first, second, third = seen((15, "7", 0.5), (31, "7.0", 0.5), (63, "8", 0.9))
    assert first == ProbeFeatures(0.0, 0.0, 0.0, 0.0, 4.0, 1.0, 0.0, 0.0)
    assert second is not None
    assert third is not None
    assert (second.agreement, second.changes, second.position) == (1.0, 0.0, 5.0)
    assert (third.agreement, third.changes, third.cues) == (0.0, 1.0, 2.0)
    assert third.confidence == pytest.approx(math.log(9))


def test_log_odds_are_limited_and_an_empty_answer_has_no_features() -> None:
    """The log-odds of probability 1 would be infinite."""
    assert seen((9, "", 1.0)) == [None]
    (features,) = seen((9, "7", 1.0))
    assert features is not None
    assert (features.confidence, features.first) == (8.0, 8.0)


def test_a_doubt_within_the_answer_is_a_feature() -> None:
    """The trial answer has a word of hesitation."""
    (features,) = seen((9, "7, wait", 0.9))
    assert features is not None
    assert features.hesitant == 1.0


def test_the_entropy_is_requested_only_if_it_has_a_weight() -> None:
    """It is the mean over the answer's own tokens; 0 without log-probabilities."""
    even, certain = (math.log(0.5),) * 2, (0.0,)
    stopper = replace(NEVER, entropy=0.5).start()
    probe = stopper.observe(cue_checkpoint(9))
    assert probe == Probe(max_tokens=20, top_logprobs=20)
    stopper.observe(probe_result(9, "7", 0.5, probe, top_logprobs=(even, certain, even)))
    assert stopper.last_features is not None
    assert stopper.last_features.entropy == pytest.approx(math.log(2) / 2)
    stopper.observe(cue_checkpoint(10))
    stopper.observe(probe_result(10, "7", 0.5, probe))
    assert stopper.last_features.entropy == 0.0


@given(
    st.lists(WEIGHTS, min_size=8, max_size=8), WEIGHTS, st.lists(WEIGHTS, min_size=8, max_size=8)
)
def test_the_probability_is_a_logistic_function(
    weights: list[float], bias: float, values: list[float]
) -> None:
    """Of the weighted sum of the features and the bias."""
    policy = Learned(bias=bias, **dict(zip(FEATURE_NAMES, weights, strict=True)))
    score = bias + sum(w * v for w, v in zip(weights, values, strict=True))
    assert policy.probability(ProbeFeatures(*values)) == pytest.approx(1 / (1 + math.exp(-score)))


@given(st.floats(0.05, 0.999), st.floats(0.05, 1.0))
def test_it_stops_at_its_threshold(confidence: float, threshold: float) -> None:
    """With the default weights, p is the answer's confidence."""
    stopper = Learned(threshold=threshold).start()
    probe = stopper.observe(cue_checkpoint(40))
    assert isinstance(probe, Probe)
    stop = stopper.observe(probe_result(40, "7", confidence, probe))
    if abs(confidence - threshold) > 1e-9:
        assert (stop is not None) == (confidence > threshold)
    if stop is not None:
        assert stop == Stop("learned", 40, pytest.approx(confidence))


def test_pauses_are_those_of_deer() -> None:
    """A probe without a stop starts one, and so does a failed probe, unless it was not sent."""
    stopper = replace(NEVER, gap=10).start()
    probe = stopper.observe(cue_checkpoint(5))
    assert isinstance(probe, Probe)
    stopper.observe(probe_result(5, "7", 0.1, probe))
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
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    """A threshold outside (0, 1], weights that are not finite, a negative gap."""
    with pytest.raises(ValueError, match=r"must"):
        Learned(**options)  # type: ignore[arg-type]


def test_every_feature_has_a_weight() -> None:
    """In the order of ``FEATURE_NAMES``."""
    policy = Learned(**{name: float(n) for n, name in enumerate(FEATURE_NAMES)})  # type: ignore[arg-type]
    assert policy.weights == tuple(float(n) for n in range(len(FEATURE_NAMES)))
    assert len(astuple(ProbeFeatures(*policy.weights))) == len(FEATURE_NAMES)
