"""``utility``: stop when more reasoning does not make the answer more certain.

Rule: at the end of a paragraph, request a greedy trial answer. Its conditional entropy, given the
trace so far, is the mean over its own tokens of each token's entropy (over the 20 most probable
tokens). Stop if the entropy has not fallen below the lowest one so far by more than ``tolerance``
at ``patience`` checkpoints in a row.
Units: nats a token; checkpoints.
Source: Measuring Reasoning Utility in LLMs via Conditional Entropy Reduction, arXiv 2508.20395.
Deviations: the paper scores the true answer, which a gateway does not know; here it is the model's
own trial answer, whose distributions the same probe returns. ``at="sentence"`` is ours.
Cost: a trial answer of at most ``max_tokens`` tokens a paragraph.
Needs an answer that can be requested: a box, a choice, a short text or code (``task``).
Patience: ``patience`` is multiplied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar, Literal

from adjourn.policies.events import Checkpoint, Command, Event, Probe, ProbeResult, Stop
from adjourn.policies.evidence.answers import INDUCERS_BY_KIND, AnswerKind, count_answer_tokens
from adjourn.policies.evidence.uncertainty import ENTROPY_TOP_LOGPROBS, token_entropy
from adjourn.policies.patience import scale_count
from adjourn.policies.policy import Needs

__all__ = ["Utility"]


@dataclass(frozen=True, slots=True)
class Utility:
    """Options of ``utility``: ``patience`` in checkpoints, ``tolerance`` in nats; ``max_tokens``:
    longest trial answer; ``task``: its kind; ``at`` as in ``entropy``."""

    name: ClassVar[str] = "utility"
    patience: int = 3
    tolerance: float = 1e-3
    at: Literal["paragraph", "sentence"] = "paragraph"
    max_tokens: int = 20
    task: AnswerKind = "boxed"

    def __post_init__(self) -> None:
        if self.patience < 1 or self.max_tokens < 1:
            raise ValueError("patience and max_tokens must be at least 1")
        if not self.tolerance >= 0:
            raise ValueError("tolerance must be at least 0")

    @property
    def needs(self) -> Needs:
        paragraphs = self.at == "paragraph"
        return Needs(
            paragraphs=paragraphs,
            sentences=not paragraphs,
            probes=True,
            inducers=frozenset({INDUCERS_BY_KIND[self.task]}),
        )

    def with_patience(self, factor: float) -> Utility:
        return replace(self, patience=scale_count(self.patience, factor))

    def start(self) -> UtilityStopper:
        return UtilityStopper(self)


class UtilityStopper:
    """One trace. State, changed by ``observe`` only: the lowest entropy so far, and the trial
    answers in a row since then. A probe without an answer changes nothing."""

    __slots__ = ("_lowest_entropy", "_policy", "_probes_without_gain")

    def __init__(self, policy: Utility) -> None:
        self._policy = policy
        self._lowest_entropy = math.inf
        self._probes_without_gain = 0

    def observe(self, event: Event) -> Command | None:
        match event:
            case Checkpoint() if event.kind == self._policy.at:
                return Probe(
                    INDUCERS_BY_KIND[self._policy.task],
                    max_tokens=self._policy.max_tokens,
                    top_logprobs=ENTROPY_TOP_LOGPROBS,
                )
            case ProbeResult():
                return self._evaluate(event)
        return None

    def _evaluate(self, result: ProbeResult) -> Command | None:
        count = count_answer_tokens(result.tokens, self._policy.task)
        if not count or len(result.top_logprobs) < count:
            return None  # a missing answer is not an answer of the same entropy
        entropy = fmean(token_entropy(logprobs) for logprobs in result.top_logprobs[:count])
        if entropy < self._lowest_entropy - self._policy.tolerance:
            self._lowest_entropy, self._probes_without_gain = entropy, 0
            return None
        self._probes_without_gain += 1
        return (
            Stop("no-gain", result.position)
            if self._probes_without_gain >= self._policy.patience
            else None
        )
