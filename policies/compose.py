"""``any_of`` and ``all_of``: several policies over one trace.

``any_of`` stops as soon as one member stops. ``all_of`` stops when all members have: a member with
queries (probes or embeddings) must agree at the same checkpoint, a member without queries stays
agreed. One query is in flight at a time: members with the same query at a checkpoint share its
result, the others take turns. Of the checkpoints that come while a query runs, the session keeps
the latest of each kind and visits the kinds in turn, so a member with frequent checkpoints cannot
starve the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import ClassVar, Self

from adjourn.policies.events import (
    Checkpoint,
    Command,
    Embed,
    Event,
    Extend,
    Probe,
    Query,
    QueryResult,
    Stop,
    TraceEnding,
)
from adjourn.policies.policy import Needs, Policy, Stopper, scale_patience
from adjourn.policies.sampling import SamplingPolicy

__all__ = ["AllOf", "AnyOf"]


@dataclass(frozen=True, slots=True)
class _Composition:
    """Policies of one trace. Raises ValueError if there is none, or one over several traces."""

    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("a composition needs at least one policy")
        if any(isinstance(policy, SamplingPolicy) for policy in self.policies):
            raise ValueError(
                "a composition takes policies of one trace: put it into the sampling policy instead"
            )

    @property
    def needs(self) -> Needs:
        return reduce(or_, (policy.needs for policy in self.policies))

    def with_patience(self, factor: float) -> Self:
        """Scale each member that supports it."""
        return replace(self, policies=tuple(scale_patience(p, factor) for p in self.policies))


@dataclass(frozen=True, slots=True)
class AnyOf(_Composition):
    """Stops with the first member that stops."""

    name: ClassVar[str] = "any_of"

    def start(self) -> CompositionStopper:
        return CompositionStopper(self.policies, _first_stop)


@dataclass(frozen=True, slots=True)
class AllOf(_Composition):
    """Stops when all members have, at the latest of their positions, with their lowest confidence
    and all their reasons joined by ``+``."""

    name: ClassVar[str] = "all_of"

    def start(self) -> CompositionStopper:
        return CompositionStopper(self.policies, _unanimous_stop)


class _Member:
    """One member's stopper, its query that waits or is in flight, and its latest stop.

    ``verdict``: the member gets no events while it has one. A new checkpoint resets that of a
    member with queries.
    """

    __slots__ = ("has_queries", "pending_query", "stopper", "trace_endings", "verdict")

    def __init__(self, policy: Policy) -> None:
        self.stopper: Stopper = policy.start()
        self.has_queries = policy.needs.has_queries
        self.trace_endings = policy.needs.trace_endings
        self.pending_query: Query | None = None
        self.verdict: Stop | None = None


class CompositionStopper:
    """One trace. ``combine`` decides from the members' verdicts.

    State: the members, and ``_query_in_flight``, the query that was returned last and has no result
    yet. Only ``observe`` changes them.
    """

    __slots__ = ("_combine", "_members", "_query_in_flight")

    def __init__(
        self, policies: tuple[Policy, ...], combine: Callable[[list[_Member]], Stop | None]
    ) -> None:
        self._members = [_Member(policy) for policy in policies]
        self._combine = combine
        self._query_in_flight: Query | None = None

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, TraceEnding):
            return self._on_trace_ending(event)
        answered = event.query if isinstance(event, QueryResult) else None
        if answered is not None:
            self._query_in_flight = None
        receivers = [m for m in self._members if answered is None or m.pending_query == answered]
        extends = [self._forward_event(member, event) for member in receivers]
        if (stop := self._combine(self._members)) is not None:
            return stop
        if self._query_in_flight is None:
            self._query_in_flight = next(
                (m.pending_query for m in self._members if m.pending_query), None
            )
            if self._query_in_flight is not None:
                return self._query_in_flight
        return self._accept_extension(extends)

    def _on_trace_ending(self, event: TraceEnding) -> Extend | None:
        """Extend the trace if any member asks for it, in both kinds of composition."""
        commands = [m.stopper.observe(event) for m in self._members if m.trace_endings]
        return self._accept_extension([c for c in commands if isinstance(c, Extend)])

    def _accept_extension(self, extends: Sequence[Extend | None]) -> Extend | None:
        """Take the first extension and drop all queries: the stream that they belong to is
        replaced, so their results never come."""
        extend = next(filter(None, extends), None)
        if extend is not None:
            self._query_in_flight = None
            for member in self._members:
                member.pending_query = None
        return extend

    @staticmethod
    def _forward_event(member: _Member, event: Event) -> Extend | None:
        if isinstance(event, Checkpoint) and member.has_queries:
            member.verdict = None
        if isinstance(event, QueryResult):
            member.pending_query = None
        if member.verdict is not None:
            return None
        match member.stopper.observe(event):
            case Stop() as stop:
                member.verdict, member.pending_query = stop, None
            case Probe() | Embed() as query:
                member.pending_query = query
            case Extend() as extend:
                return extend
        return None


def _first_stop(members: list[_Member]) -> Stop | None:
    return next((m.verdict for m in members if m.verdict is not None), None)


def _unanimous_stop(members: list[_Member]) -> Stop | None:
    verdicts = [m.verdict for m in members]
    stops = [v for v in verdicts if v is not None]
    if len(stops) < len(verdicts):
        return None
    positions = [s.position for s in stops]
    confidences = [s.confidence for s in stops if s.confidence is not None]
    return Stop(
        "+".join(sorted({s.reason for s in stops})),
        None if None in positions else max(p for p in positions if p is not None),
        min(confidences, default=None),
    )
