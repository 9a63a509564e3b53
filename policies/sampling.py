"""What a policy over several traces of one request is: events in, commands out.

A *sampling policy* is a frozen dataclass of options like any other, over at most one policy that
each trace runs by itself: ``early-consistency(deer)``. ``sample()`` makes a *sampler*, the state
machine of one request. It is shown what its traces come to and answers with commands; after a
``Choose`` it is asked no more. Traces are numbered from 0 in the order in which they are opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from adjourn.policies.never import Never
from adjourn.policies.policy import Needs, Policy, Stopper

__all__ = [
    "AbortTraces",
    "ChooseTrace",
    "ConfidenceReport",
    "OpenTraces",
    "RequestStarted",
    "Sampler",
    "SamplingCommand",
    "SamplingEvent",
    "SamplingPolicy",
    "ScoreTrace",
    "TokensReached",
    "TraceAnswered",
    "TraceClosed",
    "TraceFailed",
    "TraceScored",
]


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """The request is there. ``at``, here and below: seconds of the driver's monotonic clock."""

    at: float


@dataclass(frozen=True, slots=True)
class TraceClosed:
    """A trace ended its thinking, by itself or by a cut, after ``position`` tokens."""

    trace: int
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class TokensReached:
    """A trace thinks on, and has come to ``position``, where the policy's ``every`` wants to know
    it."""

    trace: int
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class TraceScored:
    """What a reward model says of a trace as it was at ``position``, in answer to ``Score``: higher
    is better, and only an order is meant; None where it said nothing."""

    trace: int
    reward: float | None
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class ConfidenceReport:
    """A trace is less sure than it was. ``confidence``: in nats, the least mean, over as many
    tokens in a row as the policy's ``span``, of the negative mean log-probability of the most
    probable tokens at each place; of a shorter trace, over all of it when it has ended."""

    trace: int
    confidence: float
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class TraceAnswered:
    """A trace has its whole answer. ``label`` numbers what the answer means: equal answers have
    the same one; None where there is none. ``tokens``: all that was decoded for it. ``certainty``
    in [0, 1]: the model's own, where the policy asks for it and got it."""

    trace: int
    answer: str
    label: int | None
    tokens: int
    at: float
    certainty: float | None = None


@dataclass(frozen=True, slots=True)
class TraceFailed:
    """A trace broke off; it will have no answer."""

    trace: int
    at: float


SamplingEvent = (
    RequestStarted
    | TokensReached
    | TraceClosed
    | TraceScored
    | ConfidenceReport
    | TraceAnswered
    | TraceFailed
)


@dataclass(frozen=True, slots=True)
class OpenTraces:
    """Begin so many traces more."""

    count: int


@dataclass(frozen=True, slots=True)
class ScoreTrace:
    """Ask the reward model for its word on what this trace thought so far, beside it."""

    trace: int


@dataclass(frozen=True, slots=True)
class AbortTraces:
    """End these at the engine; nothing more will be heard of them."""

    traces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChooseTrace:
    """This trace is the response; all others that still run are given up. ``reason`` is a word of
    a small fixed set, ``confidence`` in [0, 1] where the policy has one, ``votes`` how many
    answers mean the same as this one's."""

    trace: int
    reason: str
    confidence: float | None = None
    votes: int = 1


SamplingCommand = OpenTraces | ScoreTrace | AbortTraces | ChooseTrace


class Sampler(Protocol):
    """The state of one request under a sampling policy."""

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]: ...


@dataclass(frozen=True, slots=True)
class SamplingPolicy:
    """Options that all have in common: the policy that each trace runs, if any.

    ``asks``: the model is asked of each answer whether it is correct. ``span``: tokens of a
    trace over which its ``Sureness`` is taken, ``every``: those after which it is ``Reached``,
    again and again; 0 for none.
    """

    name: ClassVar[str] = ""
    asks_if_correct: ClassVar[bool] = False
    policies: tuple[Policy, ...] = ()

    def __post_init__(self) -> None:
        if len(self.policies) > 1:
            raise ValueError("each trace runs one policy: compose several with any_of")
        if any(isinstance(policy, SamplingPolicy) for policy in self.policies):
            raise ValueError("it runs over traces, and cannot run over policies that do so too")

    @property
    def trace_policy(self) -> Policy:
        """What each trace runs by itself."""
        return self.policies[0] if self.policies else Never()

    @property
    def confidence_window(self) -> int:
        return 0

    @property
    def report_interval(self) -> int:
        return 0

    @property
    def needs(self) -> Needs:
        return self.trace_policy.needs

    def start(self) -> Stopper:
        """As a policy of one trace it is what each trace runs."""
        return self.trace_policy.start()

    def start_sampler(self) -> Sampler:
        raise NotImplementedError
