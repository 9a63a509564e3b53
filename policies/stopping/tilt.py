"""``tilt``: make the model itself likelier to end.

Rule: the end marker's logit is raised by ``bias``, and from ``begin`` tokens on by ``slope`` more
for every thousand tokens, in steps ``every`` tokens apart. Nothing is stopped: the model ends when
it likes.
Units: logits (nats of odds); tokens of the trace.
Source: Making Small Language Models Efficient Reasoners, arXiv 2505.07961, which scales the
temperature of the end of thinking.
Cost: none for ``bias``; a new stream from the same ids at each step of a slope, which throws away
the few tokens that are decoded meanwhile. An engine knows no bias that ends with the trace, so it
holds in the answer too: a large one makes the marker appear there. Since nothing triggers, what it
saves is not measured by held-out conversations, which run without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Command, Event, Extend, ReasoningChunk
from adjourn.policies.policy import Needs

__all__ = ["Tilt"]


@dataclass(frozen=True, slots=True)
class Tilt:
    """Options of ``tilt``: ``bias`` in logits, ``slope`` in logits per thousand tokens, ``begin``
    and ``every`` in tokens."""

    name: ClassVar[str] = "tilt"
    bias: float = 1.0
    begin: int = 0
    slope: float = 0.0
    every: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.bias <= 100 or not 0 <= self.slope <= 1000:
            raise ValueError("bias must lie in [0, 100], slope in [0, 1000]")
        if self.begin < 0 or self.every < 1:
            raise ValueError("begin must be at least 0, every 1")

    @property
    def needs(self) -> Needs:
        return Needs(end_bias=self.bias, reasoning_chunks=self.slope > 0)

    def start(self) -> TiltStopper:
        return TiltStopper(self)


class TiltStopper:
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
        steeper = policy.slope * (event.position - policy.begin) / 1000
        return Extend(text_name="", end_bias=min(policy.bias + steeper, 100.0))
