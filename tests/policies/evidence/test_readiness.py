"""The classifier of `lynx`: probability, conformal sets, and errors of a broken document."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.evidence.hidden_states import Layer
from adjourn.policies.evidence.readiness import (
    NOT_READY,
    READY,
    UNTRAINED,
    BadReadinessClassifier,
    ReadinessClassifier,
)
from tests.policies.readiness_fixtures import (
    CLASSIFIER,
    classifier_document,
    make_classifier,
    make_hidden_states,
)

SHARES = st.lists(st.floats(0, 1), max_size=60)
DELTAS = st.floats(0.01, 0.9)


def test_the_probability_is_the_logistic_of_the_weighted_sum() -> None:
    """Over the layers it was trained on; other layers are ignored."""
    probe = make_classifier(bias=-1.0, weights=[1.0, 2.0, 3.0, 4.0])
    states = make_hidden_states(9, 9, 1, 1, 0.5, 0.25, layers=(1, 2, 5))
    assert probe.probability(states) == pytest.approx(1 / (1 + math.exp(-4.5)))


@pytest.mark.parametrize("value", [-3e38, 3e38])
def test_huge_states_do_not_overflow(value: float) -> None:
    """The probability is 0 or 1."""
    assert make_classifier().probability(make_hidden_states(value, 0, 0, 0)) == (
        1.0 if value > 0 else 0.0
    )


def test_states_of_another_shape_are_an_error() -> None:
    """Another width, a missing layer, NaN."""
    with pytest.raises(ValueError, match="width 3, trained on 2"):
        make_classifier().probability(make_hidden_states(*range(6), width=3))
    with pytest.raises(ValueError, match="not in"):
        make_classifier().probability(make_hidden_states(1, 2, layers=(2,)))
    with pytest.raises(ValueError, match="not a number"):
        make_classifier().probability(make_hidden_states(math.nan, 0, 0, 0))


def test_identity_and_required_layers() -> None:
    """Equal documents are equal classifiers; the repr is short enough for a cache key."""
    assert make_classifier().required_layers == {Layer(2, 2), Layer(5, 2)}
    assert make_classifier() == make_classifier() != make_classifier(bias=1)
    assert hash(make_classifier()) == hash(make_classifier())
    assert len(repr(make_classifier())) < 80
    assert make_classifier() != UNTRAINED


@given(SHARES, SHARES, DELTAS, st.floats(0, 1))
def test_the_conformal_set(
    ready: list[float], not_ready: list[float], delta: float, p: float
) -> None:
    """A label is excluded only if at most a share δ of its calibration scores conform less; with
    too few scores it is never excluded."""
    probe = make_classifier(calibration={"ready": ready, "not_ready": not_ready})
    labels = probe.prediction_set(p, delta)
    stranger = sum(1 for other in ready if other < p) + sum(1 for other in ready if other == p)
    if (stranger + 1) / (len(ready) + 1) > delta + 1e-6:
        assert READY in labels
    elif (stranger + 1) / (len(ready) + 1) < delta - 1e-6:
        assert READY not in labels
    likelier = sum(1 for other in not_ready if other >= p)
    if (likelier + 1) / (len(not_ready) + 1) > delta + 1e-6:
        assert NOT_READY in labels
    elif (likelier + 1) / (len(not_ready) + 1) < delta - 1e-6:
        assert NOT_READY not in labels


@given(SHARES, SHARES, st.floats(0, 1), DELTAS, DELTAS)
def test_a_smaller_delta_excludes_less(
    ready: list[float], not_ready: list[float], p: float, one: float, other: float
) -> None:
    probe = make_classifier(calibration={"ready": ready, "not_ready": not_ready})
    assert probe.prediction_set(p, min(one, other)) >= probe.prediction_set(p, max(one, other))


@pytest.mark.parametrize("delta", [0.05, 0.1])
def test_coverage_of_each_label(delta: float) -> None:
    """The set has the true label in at least 1 - δ of the places of each label, within four
    standard errors, however different and unbalanced the labels are."""
    rng, draws = random.Random(f"coverage {delta}"), 1500
    kinds = {"ready": (3, 1, 80), "not_ready": (1, 2, 30)}
    held = dict.fromkeys(kinds, 0)
    for _ in range(draws):
        scores = {k: [rng.betavariate(a, b) for _ in range(n)] for k, (a, b, n) in kinds.items()}
        probe = make_classifier(calibration=scores)
        for kind, (a, b, _) in kinds.items():
            labels = probe.prediction_set(rng.betavariate(a, b), delta)
            held[kind] += (READY if kind == "ready" else NOT_READY) in labels
    error = 4 * math.sqrt(delta * (1 - delta) / draws)
    assert min(held.values()) / draws >= 1 - delta - error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version is 2, this program reads 1"),
        ({"weights": [1.0]}, "1 weights, but 2 layers of width 2 need 4"),
        ({"weights": ["1", 2, 3, 4]}, "weights must be"),
        ({"weights": [1, 2, 3, math.inf]}, "weights must be"),
        ({"weights": None}, "weights must be a list"),
        ({"layers": [2, 5.0]}, "layers must be"),
        ({"layers": [], "weights": []}, "layers must not be empty"),
        ({"width": 0, "weights": []}, "width must be at least 1"),
        ({"width": True}, "width must be"),
        ({"bias": math.nan}, "bias must be"),
        ({"bias": 10**400}, "bias must be"),
        ({"model": 7}, "model must be a string"),
        ({"calibration": []}, "calibration must be an object"),
        ({"calibration": {"ready": [0.5]}}, "not_ready must be a list"),
        ({"calibration": {"ready": [2], "not_ready": []}}, "ready must be probabilities"),
    ],
)
def test_a_broken_document_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadReadinessClassifier, match=message):
        ReadinessClassifier.parse(classifier_document(**changes))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"1e999"])
def test_other_documents_are_refused(raw: bytes) -> None:
    with pytest.raises(BadReadinessClassifier):
        ReadinessClassifier.parse(raw)


@given(st.dictionaries(st.sampled_from(sorted(CLASSIFIER)), st.none() | st.integers() | st.text()))
def test_any_object_is_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        assert ReadinessClassifier.parse(
            json.dumps({**CLASSIFIER, **changes}).encode()
        ).required_layers
    except BadReadinessClassifier:
        return
