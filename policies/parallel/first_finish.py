"""``first-finish``: run several traces at once; the first to end its reasoning is the response.

Rule: open ``traces`` together; the first that ends its reasoning wins, and the others are aborted
at the engine.
Source: First Finish Search (FFS), arXiv 2505.18149.
Deviations: in the paper a trace ends by itself. Here each trace may run a policy, and a trace that
the policy cut wins too, whatever the reason: with ``budget`` or ``loop`` as member, the trace that
they cut first wins.
Cost: ``traces`` times the shortest trace. It saves time, and tokens against a majority vote;
against a single trace it saves tokens only if the shortest is under 1 / ``traces`` of the mean.
Does not fit models whose longer traces are better: Qwen3-32B on AIME24 has 40.0 points, against
90.0 by majority vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.sampling import (
    ChooseTrace,
    OpenTraces,
    RequestStarted,
    SamplingCommand,
    SamplingEvent,
    SamplingPolicy,
    TraceAnswered,
    TraceClosed,
)

__all__ = ["FirstFinish"]


@dataclass(frozen=True, slots=True)
class FirstFinish(SamplingPolicy):
    """Options of ``first-finish``. ``traces``: concurrent traces."""

    name: ClassVar[str] = "first-finish"
    traces: int = 4

    def __post_init__(self) -> None:
        SamplingPolicy.__post_init__(self)
        if not 1 <= self.traces <= 128:
            raise ValueError("traces must lie in [1, 128]")

    def start_sampler(self) -> FirstFinishSampler:
        return FirstFinishSampler(self.traces)


class FirstFinishSampler:
    """One request. It has no state."""

    def __init__(self, traces: int) -> None:
        self._traces = traces

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        match event:
            case RequestStarted():
                return (OpenTraces(self._traces),)
            case TraceClosed() | TraceAnswered():
                return (ChooseTrace(event.trace, "first"),)
        return ()
