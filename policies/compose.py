"""``any_of`` and ``all_of``: several policies over one trace.

``any_of`` stops when one of them does. ``all_of`` stops when all have; a member that looks by
probe must agree at the same checkpoint, one that has no probe stays agreed. One probe is in flight
at a time: members that ask the same thing at one checkpoint share its result, the others take
turns. Of the checkpoints of a kind that come while one runs only the latest is looked at, when it
has said no; the kinds take turns, so that a member that looks often starves none that looks
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import ClassVar

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
from adjourn.policies.policy import Needs, Policy, Stopper
from adjourn.policies.sampling import SamplingPolicy

__all__ = ["AllOf", "AnyOf"]


@dataclass(frozen=True, slots=True)
class _Composition:
    policies: tuple[Policy, ...]

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("a composition needs at least one policy")
        if any(isinstance(policy, SamplingPolicy) for policy in self.policies):
            raise ValueError("it composes policies of one trace; one over several goes around it")

    @property
    def needs(self) -> Needs:
        return reduce(or_, (policy.needs for policy in self.policies))


@dataclass(frozen=True, slots=True)
class AnyOf(_Composition):
    name: ClassVar[str] = "any_of"

    def start(self) -> CompositionStopper:
        return CompositionStopper(self.policies, _first_stop)


@dataclass(frozen=True, slots=True)
class AllOf(_Composition):
    name: ClassVar[str] = "all_of"

    def start(self) -> CompositionStopper:
        return CompositionStopper(self.policies, _unanimous_stop)


class _Member:
    """One policy's stopper, what it asked and what it said last."""

    __slots__ = ("has_queries", "pending_query", "stopper", "trace_endings", "verdict")

    def __init__(self, policy: Policy) -> None:
        self.stopper: Stopper = policy.start()
        self.has_queries = policy.needs.has_queries
        self.trace_endings = policy.needs.trace_endings
        self.pending_query: Query | None = None
        self.verdict: Stop | None = None


class CompositionStopper:
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
        shown = [m for m in self._members if answered is None or m.pending_query == answered]
        extends = [self._forward_event(member, event) for member in shown]
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
        """One that wants the trace to go on is enough: those that would stop it had their say."""
        said = [m.stopper.observe(event) for m in self._members if m.trace_endings]
        return self._accept_extension([command for command in said if isinstance(command, Extend)])

    def _accept_extension(self, extends: Sequence[Extend | None]) -> Extend | None:
        """The first of them; a question of the stream that is given up for it never comes back."""
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
            case Probe() | Embed() as question:
                member.pending_query = question
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
