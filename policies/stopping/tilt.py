"""``tilt``: make the model itself more likely to end its trace.

Rule: add ``bias`` to the end marker's logit, and from ``begin`` tokens on ``slope`` more for every
thousand tokens, in steps ``every`` tokens apart. It stops nothing: the model ends the trace.
Units: logits (nats of odds); tokens of the trace.
Source: Making Small Language Models Efficient Reasoners, arXiv 2505.07961.
Deviations: the paper scales the temperature of the end of thinking; here a bias is added, since
that is what an engine's API has (``logit_bias``).
Cost: none for ``bias``. Each step of a slope opens a new stream from the same ids and discards the
few tokens decoded meanwhile. No engine ends a bias with the trace, so it applies to the answer too,
and a large one makes the marker appear there. Nothing triggers, so the holdout does not measure the
saving.
Patience: none to scale. It does not wait for anything; and a client must not raise a bias that
applies to the answer too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Command, Event, Extend, ReasoningChunk
from adjourn.policies.policy import Needs

__all__ = ["Tilt"]

_MAX_BIAS = 100.0
"""The limit of ``logit_bias`` in the OpenAI API."""


@dataclass(frozen=True, slots=True)
class Tilt:
    """Options of ``tilt``: ``bias`` in logits, ``slope`` in logits per thousand tokens, ``begin``
    and ``every`` in tokens of the trace."""

    name: ClassVar[str] = "tilt"
    bias: float = 1.0
    begin: int = 0
    slope: float = 0.0
    every: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.bias <= _MAX_BIAS or not 0 <= self.slope <= 1000:
            raise ValueError("bias must lie in [0, 100], slope in [0, 1000]")
        if self.begin < 0 or self.every < 1:
            raise ValueError("begin must be at least 0, every 1")

    @property
    def needs(self) -> Needs:
        return Needs(end_bias=self.bias, reasoning_chunks=self.slope > 0)

    def start(self) -> TiltStopper:
        return TiltStopper(self)


class TiltStopper:
    """One trace. State: the position of the next step, changed by ``observe`` only."""

    __slots__ = ("_next_step_at", "_policy")

    def __init__(self, policy: Tilt) -> None:
        self._policy = policy
        self._next_step_at = policy.begin + policy.every

    def observe(self, event: Event) -> Command | None:
        policy = self._policy
        if (
            not policy.slope
            or not isinstance(event, ReasoningChunk)
            or event.position < self._next_step_at
        ):
            return None
        self._next_step_at = event.position + policy.every
        added = policy.slope * (event.position - policy.begin) / 1000
        return Extend(text_name="", end_bias=min(policy.bias + added, _MAX_BIAS))
