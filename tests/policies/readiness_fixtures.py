"""Small probes for `lynx`, and hidden states to show them."""

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
"""p is the logistic of the first number behind each of two layers. Ready is from 0.5 on, and what
is not ready below."""


def classifier_document(**changes: Any) -> bytes:
    return json.dumps({**CLASSIFIER, **changes}).encode()


def make_classifier(**changes: Any) -> ReadinessClassifier:
    return ReadinessClassifier.parse(classifier_document(**changes))


def make_hidden_states(
    *values: float, layers: Sequence[int] = (2, 5), width: int = 2
) -> HiddenStates:
    """These numbers, as near as a bfloat16 comes."""
    data = b"".join(struct.pack("<f", value)[2:] for value in values)
    return HiddenStates(tuple(layers), width, data)
