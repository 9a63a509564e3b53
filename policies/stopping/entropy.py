"""``entropy``: stop when closing the trace would no longer surprise.

Rule: at the end of a paragraph, close the trace beside the stream and take the entropy of the
token that would follow (over the 20 most probable); follow its exponentially weighted mean and
variance, and stop when the variance is below ``delta``, 4 / ``alpha`` such looks at the earliest.
Units: nats, and nats squared for ``delta``.
Source: Entropy After </think> (EAT), arXiv 2509.26522.
Cost: one token a paragraph. It needs no answer format, so it serves prose, code, JSON and tool
calls as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from adjourn.policies.events import Checkpoint, Command, Event, Probe, ProbeResult, Stop
from adjourn.policies.evidence.uncertainty import ENTROPY_TOP_LOGPROBS, token_entropy
from adjourn.policies.policy import Needs

__all__ = ["Entropy"]

_PROBE = Probe(inducer="", max_tokens=1, top_logprobs=ENTROPY_TOP_LOGPROBS)


@dataclass(frozen=True, slots=True)
class Entropy:
    """Options of ``entropy``.

    ``alpha`` in (0, 1): weight of the latest look. ``delta``: variance under which it stops.
    ``at``: the paper looks at ``paragraph`` ends; ``sentence`` ends serve shorter traces.
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
        """Looks before which it never stops."""
        return math.ceil(4 / self.alpha)

    def start(self) -> EntropyStopper:
        return EntropyStopper(self)


class EntropyStopper:
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

    def _update(self, value: float) -> None:
        alpha, off = self._policy.alpha, value - self._mean
        if self._probe_count:
            self._mean += alpha * off
            self._variance = (1 - alpha) * (self._variance + alpha * off * off)
        else:
            self._mean = value
        self._probe_count += 1
