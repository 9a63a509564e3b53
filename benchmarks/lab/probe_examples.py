"""Collect training examples: what a policy that never stops observes at each of its probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from adjourn.lab.replay import replay_trace
from adjourn.lab.replay_trace import ReplayDataset, ReplayTrace
from adjourn.policies.events import Command, Event, ProbeResult
from adjourn.policies.policy import Needs, Policy, Stopper
from adjourn.policies.session.probe_cost import ProbeCostModel

__all__ = ["collect_at_probes"]

T = TypeVar("T")


def collect_at_probes(
    policy: Policy, dataset: ReplayDataset, extract: Callable[[Any, ProbeResult], T | None]
) -> Iterator[tuple[int, ReplayTrace, T]]:
    """Replay ``policy``, which must never stop, and call ``extract`` with its stopper and each
    probe result that the stopper has observed.

    Yields the index of the trace, the trace, and each extracted value that is not None.
    """
    for index, trace in enumerate(dataset.traces):
        observer = _Observer(policy, extract, [])
        replay_trace(observer, trace, dataset.dialect, ProbeCostModel(), instant=True)
        for value in observer.collected:
            yield index, trace, value


@dataclass(frozen=True, slots=True)
class _Observer(Generic[T]):
    """``policy``, with what ``extract`` returns appended to ``collected``."""

    name: ClassVar[str] = "observer"
    policy: Policy
    extract: Callable[[Any, ProbeResult], T | None]
    collected: list[T]

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def start(self) -> Stopper:
        return _ObservedStopper(self, self.policy.start())


class _ObservedStopper(Generic[T]):
    def __init__(self, observer: _Observer[T], stopper: Stopper) -> None:
        self._observer = observer
        self._stopper = stopper

    def observe(self, event: Event) -> Command | None:
        command = self._stopper.observe(event)
        if isinstance(event, ProbeResult):
            value = self._observer.extract(self._stopper, event)
            if value is not None:
                self._observer.collected.append(value)
        return command
