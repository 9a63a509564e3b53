"""Small classifiers for ``lynx``, and hidden states for them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from adjourn.policies.evidence.hidden_states import HiddenStates
from adjourn.policies.evidence.readiness import ReadinessClassifier

__all__ = ["CLASSIFIER", "classifier_document", "make_classifier", "make_hidden_states"]

CLASSIFIER: dict[str, Any] = {
    "version": 1,
    "model": "small",
    "layers": [2, 5],
    "width": 2,
    "bias": 0.0,
    "weights": [1.0, 0.0, 1.0, 0.0],
    "calibration": {
        "ready": [round(0.5 + n / 200, 3) for n in range(100)],
        "not_ready": [round(n / 200, 3) for n in range(100)],
    },
}
"""p is the logistic function of the sum of the first numbers of two layers. In the calibration,
ready places have p from 0.5 on, and others below 0.5."""


def classifier_document(**changes: Any) -> bytes:
    return json.dumps({**CLASSIFIER, **changes}).encode()


def make_classifier(**changes: Any) -> ReadinessClassifier:
    return ReadinessClassifier.parse(classifier_document(**changes))


def make_hidden_states(
    *values: float, layers: Sequence[int] = (2, 5), width: int = 2
) -> HiddenStates:
    """These numbers, rounded to bfloat16."""
    data = b"".join(struct.pack("<f", value)[2:] for value in values)
    return HiddenStates(tuple(layers), width, data)
