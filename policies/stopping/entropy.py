"""``entropy``: stop when the next token after the closing sequence would not surprise any more.

Rule: at the end of a paragraph, close the trace in a probe and take the entropy of the next token
(over the 20 most probable tokens). Follow its exponentially weighted mean and variance; stop if the
variance is below ``delta``, after at least 4 / ``alpha`` probes.
Units: nats for the entropy, nats squared for ``delta``.
Source: Entropy After </think> (EAT), arXiv 2509.26522.
Deviations: ``at="sentence"`` is ours, for traces that are too short for 4 / ``alpha`` paragraphs.
Cost: one token a paragraph. Needs no answer format: fits prose, code, JSON and tool calls too.
Patience: ``delta`` is divided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from adjourn.policies.events import Checkpoint, Command, Event, Probe, ProbeResult, Stop
from adjourn.policies.evidence.uncertainty import ENTROPY_TOP_LOGPROBS, token_entropy
from adjourn.policies.policy import Needs

__all__ = ["Entropy"]

_PROBE = Probe(inducer="", max_tokens=1, top_logprobs=ENTROPY_TOP_LOGPROBS)


@dataclass(frozen=True, slots=True)
class Entropy:
    """Options of ``entropy``.

    ``alpha`` in (0, 1): weight of the latest probe. ``delta``: the variance below which it stops.
    ``at``: probe at the ends of a ``paragraph`` or of a ``sentence``.
    """

    name: ClassVar[str] = "entropy"
    alpha: float = 0.2
    delta: float = 2e-4
    at: Literal["paragraph", "sentence"] = "paragraph"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError("alpha must lie between 0 and 1")
        if not self.delta > 0:
            raise ValueError("delta must be greater than 0")

    @property
    def needs(self) -> Needs:
        paragraphs = self.at == "paragraph"
        return Needs(
            paragraphs=paragraphs,
            sentences=not paragraphs,
            probes=True,
            min_checkpoints=self.min_probes,
        )

    @property
    def min_probes(self) -> int:
        """Probes before which it never stops."""
        return math.ceil(4 / self.alpha)

    def with_patience(self, factor: float) -> Entropy:
        return replace(self, delta=max(self.delta / factor, math.ulp(0.0)))

    def start(self) -> EntropyStopper:
        return EntropyStopper(self)


class EntropyStopper:
    """One trace. State, changed by ``observe`` only: the number of probes with a result, and the
    mean and variance of their entropies. A probe without a result changes nothing."""

    __slots__ = ("_mean", "_policy", "_probe_count", "_variance")

    def __init__(self, policy: Entropy) -> None:
        self._policy = policy
        self._probe_count = 0
        self._mean = self._variance = 0.0

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint() if event.kind == self._policy.at:
                return _PROBE
            case ProbeResult() if event.top_logprobs:
                self._update(token_entropy(event.top_logprobs[0]))
                if (
                    self._probe_count >= self._policy.min_probes
                    and self._variance < self._policy.delta
                ):
                    return Stop("settled", event.position)
        return None

    def _update(self, entropy: float) -> None:
        alpha, change = self._policy.alpha, entropy - self._mean
        if self._probe_count:
            self._mean += alpha * change
            self._variance = (1 - alpha) * (self._variance + alpha * change * change)
        else:
            self._mean = entropy
        self._probe_count += 1
