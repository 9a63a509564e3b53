"""``self-certainty``: ask the model whether its answer is correct.

Rule: after each answer, ask the model "Is the answer correct?" and take P("Yes") from the next
token. The first answer with P >= ``threshold`` is the response; after ``max`` traces, the class of
answers with the largest sum of P.
Units: traces; ``threshold`` is a probability.
Source: Efficient Test-Time Scaling via Self-Calibration, arXiv 2503.00031.
Deviations: an answer whose question failed has half a vote.
Cost: ``window`` to ``max`` traces, and one token an answer.
Does not fit models that were not trained to answer this question, as the paper's were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.parallel.votes import WindowSampler
from adjourn.policies.policy import Needs
from adjourn.policies.sampling import (
    ChooseTrace,
    SamplingCommand,
    SamplingEvent,
    SamplingPolicy,
    TraceAnswered,
)

__all__ = ["SelfCertainty"]

_DEFAULT_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class SelfCertainty(SamplingPolicy):
    """Options of ``self-certainty``. ``threshold`` in (0, 1]; ``window``: concurrent traces;
    ``max``: traces at most."""

    name: ClassVar[str] = "self-certainty"
    asks_if_correct: ClassVar[bool] = True
    threshold: float = 0.8
    window: int = 4
    max: int = 16

    def __post_init__(self) -> None:
        SamplingPolicy.__post_init__(self)
        if not 0 < self.threshold <= 1:
            raise ValueError("threshold must lie in (0, 1]")
        if not 1 <= self.window <= self.max <= 128:
            raise ValueError("window must be at least 1, max no less than window, and at most 128")

    @property
    def needs(self) -> Needs:
        texts = frozenset({"correct", "yes"})
        return self.trace_policy.needs | Needs(probes=True, end_logprob=True, inducers=texts)

    def start_sampler(self) -> SelfCertaintySampler:
        return SelfCertaintySampler(self)


class SelfCertaintySampler(WindowSampler):
    """One request. It never settles early: a certain answer wins, whichever class leads."""

    max_vote_weight = float("inf")

    def __init__(self, policy: SelfCertainty) -> None:
        super().__init__(policy.window, policy.max)
        self._threshold = policy.threshold

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        commands = super().observe(event)
        if not isinstance(event, TraceAnswered) or event.label is None:
            return commands
        if event.certainty is not None and event.certainty >= self._threshold:
            votes = len(self.votes.voters[event.label])
            return (ChooseTrace(event.trace, "certain", event.certainty, votes),)
        return commands

    def weigh(self, event: TraceAnswered) -> float:
        return _DEFAULT_WEIGHT if event.certainty is None else event.certainty

    def decide(self) -> ChooseTrace | None:
        return None
