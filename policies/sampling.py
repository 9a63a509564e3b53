"""The contract of a sampling policy, which runs several traces for one request.

A *sampling policy* is a frozen dataclass of options like any other. It has at most one member, the
stopping policy that each trace runs: ``early-consistency(deer)``. ``start_sampler()`` creates a
*sampler*, the state machine of one request. A sampler receives the events of its traces and replies
with commands; it is not called again after a ``ChooseTrace``. Traces are numbered from 0 in the
order in which they are opened. Times (``at``) are seconds of the driver's monotonic clock, and
positions are in tokens of the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

from adjourn.policies.never import Never
from adjourn.policies.policy import Needs, Policy, Stopper, scale_patience

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
    """The request has arrived, and no trace is open yet."""

    at: float


@dataclass(frozen=True, slots=True)
class TraceClosed:
    """A trace ended its reasoning, by itself or by a cut, after ``position`` tokens."""

    trace: int
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class TokensReached:
    """A trace that is still open has reached ``position``, another ``report_interval`` tokens."""

    trace: int
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class TraceScored:
    """The reply to a ``ScoreTrace``. ``reward``: the reward model's score of the trace as it was at
    ``position``; higher is better, and only the order matters. None if there is no score."""

    trace: int
    reward: float | None
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class ConfidenceReport:
    """The lowest confidence of a trace so far has fallen.

    ``confidence``: in nats, the lowest mean confidence over ``confidence_window`` consecutive
    tokens, where a token's confidence is the negative mean log-probability of the most probable
    tokens at its place. For a shorter trace, the mean over all of it, sent when it has ended.
    """

    trace: int
    confidence: float
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class TraceAnswered:
    """A trace has its whole answer.

    ``label``: the answer's class; answers of equal meaning share it, and it is None if there is no
    answer. ``tokens``: decoded for this trace, answer included. ``certainty``: the model's
    probability in [0, 1] that the answer is correct, if the policy asks for it; else None.
    """

    trace: int
    answer: str
    label: int | None
    tokens: int
    at: float
    certainty: float | None = None


@dataclass(frozen=True, slots=True)
class TraceFailed:
    """A trace has failed and will have no answer."""

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
    """Open ``count`` more traces."""

    count: int


@dataclass(frozen=True, slots=True)
class ScoreTrace:
    """Ask the reward model to score this trace as it is now, while the trace continues."""

    trace: int


@dataclass(frozen=True, slots=True)
class AbortTraces:
    """Abort these traces at the engine; they have no further events."""

    traces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChooseTrace:
    """This trace is the response; all others that still run are aborted.

    ``reason`` becomes a metric label: use a small fixed set of words per policy. ``confidence``:
    in [0, 1], or None if the policy has none. ``votes``: how many answers equal this trace's.
    """

    trace: int
    reason: str
    confidence: float | None = None
    votes: int = 1


SamplingCommand = OpenTraces | ScoreTrace | AbortTraces | ChooseTrace


class Sampler(Protocol):
    """The state of one request under a sampling policy."""

    def observe(self, event: SamplingEvent) -> Sequence[SamplingCommand]:
        """Reply to an event with any number of commands. If it raises an exception, or never
        chooses, the first trace with an answer is the response."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingPolicy:
    """The base class. ``policies`` has the policy that each trace runs, or is empty.

    ``asks_if_correct``: ask the model, for each answer, whether it is correct.
    ``confidence_window``: tokens over which ``ConfidenceReport`` averages; 0 sends none.
    ``report_interval``: tokens of a trace between two ``TokensReached``; 0 sends none.

    Raises ValueError if there are several members, or one that is a sampling policy itself.
    """

    name: ClassVar[str] = ""
    asks_if_correct: ClassVar[bool] = False
    policies: tuple[Policy, ...] = ()

    def __post_init__(self) -> None:
        if len(self.policies) > 1:
            raise ValueError("each trace runs one policy: compose several with any_of")
        if any(isinstance(policy, SamplingPolicy) for policy in self.policies):
            raise ValueError("the policy of a trace cannot be a sampling policy")

    @property
    def trace_policy(self) -> Policy:
        """The policy that each trace runs."""
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
        """A stopper for one trace: that of the trace's policy."""
        return self.trace_policy.start()

    def start_sampler(self) -> Sampler:
        """A new sampler, for one request."""
        raise NotImplementedError

    def with_patience(self, factor: float) -> Self:
        """Scale the policy that each trace runs. How many traces are opened does not change."""
        return replace(self, policies=tuple(scale_patience(p, factor) for p in self.policies))
