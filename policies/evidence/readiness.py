"""Is the answer there? A classifier of hidden states, with what calibrates it.

It is one document of JSON, which `adjourn learn --policy lynx` writes: numbers and names, of which
nothing is executed. Reading the file is the driver's.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import mul
from typing import Any

from adjourn.policies.evidence.conformal import conformal_rank
from adjourn.policies.evidence.hidden_states import HiddenStates, Layer

__all__ = [
    "FORMAT_VERSION",
    "NOT_READY",
    "READY",
    "UNTRAINED",
    "BadReadinessClassifier",
    "ReadinessClassifier",
]

FORMAT_VERSION = 1
_MAX_INT = 2**53
READY, NOT_READY = "ready", "not-ready"


class BadReadinessClassifier(ValueError):
    """A document that is no classifier; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ReadinessClassifier:
    """p = 1 / (1 + e⁻ˢ), s = ``bias`` + Σ weight · state, over the states behind ``layers``, each
    ``width`` numbers.

    ``ready`` and ``not_ready``: p at places of both kinds from which nothing was learned,
    ascending. They hold for any δ. ``digest`` names the document, and tells two of them apart.
    """

    model: str = field(compare=False)
    layers: tuple[int, ...] = field(compare=False, repr=False)
    width: int = field(compare=False, repr=False)
    bias: float = field(compare=False, repr=False)
    weights: tuple[float, ...] = field(compare=False, repr=False)
    ready_scores: tuple[float, ...] = field(compare=False, repr=False)
    not_ready_scores: tuple[float, ...] = field(compare=False, repr=False)
    digest: str

    @classmethod
    def parse(cls, document: bytes) -> ReadinessClassifier:
        """Raises BadReadiness."""
        try:
            told = json.loads(document)
        except ValueError as error:
            raise BadReadinessClassifier(f"no JSON: {error}") from None
        if not isinstance(told, dict):
            raise BadReadinessClassifier("no JSON object")
        if (version := told.get("version")) != FORMAT_VERSION:
            raise BadReadinessClassifier(
                f"version is {version!r}, this program reads {FORMAT_VERSION}"
            )
        layers = _get_list(told, "layers", int)
        width = _get_value(told, "width", int)
        weights = _get_list(told, "weights", float)
        if not layers or width < 1:
            raise BadReadinessClassifier("layers and width must say of what the weights are")
        if len(weights) != width * len(layers):
            raise BadReadinessClassifier(
                f"{len(weights)} weights, but {len(layers)} layers of width {width} need "
                f"{width * len(layers)}"
            )
        scores = _get_value(told, "calibration", dict)
        return cls(
            _get_value(told, "model", str),
            layers,
            width,
            _get_value(told, "bias", float),
            weights,
            _get_probabilities(scores, "ready"),
            _get_probabilities(scores, "not_ready"),
            hashlib.blake2b(document, digest_size=6).hexdigest(),
        )

    @property
    def required_layers(self) -> frozenset[Layer]:
        return frozenset(Layer(number, self.width) for number in self.layers)

    def probability(self, states: HiddenStates) -> float:
        """p. Raises ValueError where these states are of another shape.

        In plain Python some 50 ns a number: 0.6 ms where three layers of 4096 are looked at.
        """
        if states.width != self.width:
            raise ValueError(f"hidden states of width {states.width}, learned from {self.width}")
        score = self.bias + sum(map(mul, self.weights, states.at_layers(self.layers)))
        if math.isnan(score):
            raise ValueError("hidden states that are no numbers")
        return 1 / (1 + math.exp(-score)) if score > -700 else 0.0

    def thresholds(self, delta: float) -> tuple[float, float]:
        """From which p on a place may be ready, and up to which it may not be: of each kind all but
        a share of ``delta`` lie within. Nonconformity is 1 less the label's own probability."""
        ready, not_ready = (
            conformal_rank(len(self.ready_scores), delta),
            conformal_rank(len(self.not_ready_scores), delta),
        )
        return (
            self.ready_scores[-ready] if ready <= len(self.ready_scores) else 0.0,
            self.not_ready_scores[not_ready - 1]
            if not_ready <= len(self.not_ready_scores)
            else 1.0,
        )

    def prediction_set(self, probability: float, delta: float) -> frozenset[str]:
        """The conformal set: every label that cannot be ruled out at this level."""
        least, most = self.thresholds(delta)
        could = ((READY, probability >= least), (NOT_READY, probability <= most))
        return frozenset(label for label, it_could in could if it_could)


UNTRAINED = ReadinessClassifier("", (), 0, -math.inf, (), (), (), "")
"""Never ready: to record with."""


def _get_value(told: Mapping[str, Any], key: str, kind: type) -> Any:
    value = told.get(key)
    if kind is float and type(value) is int and abs(value) < _MAX_INT:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise BadReadinessClassifier(f"{key} must be {_TYPE_NAMES[kind]}")
    return value


def _get_list(told: Mapping[str, Any], key: str, kind: type) -> tuple[Any, ...]:
    values = _get_value(told, key, list)
    return tuple(_get_value({key: value}, key, kind) for value in values)


def _get_probabilities(told: Mapping[str, Any], key: str) -> tuple[float, ...]:
    shares = _get_list(told, key, float)
    if not all(0 <= share <= 1 for share in shares):
        raise BadReadinessClassifier(f"{key} must be probabilities")
    return tuple(sorted(shares))


_TYPE_NAMES: dict[type, str] = {
    dict: "an object",
    float: "a number, or numbers",
    int: "a whole number, or whole numbers",
    list: "a list",
    str: "a text",
}
