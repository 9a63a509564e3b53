"""One setting of one policy over all traces: what it costs, what it keeps, against whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.lab.baselines import Array, Baselines, Rows, row
from benchmarks.lab.intervals import Clusters, Estimate
from benchmarks.lab.replay import Outcome

__all__ = ["Judge", "Point", "best", "front"]


@dataclass(frozen=True, slots=True)
class Point:
    """A policy or a baseline. ``accuracy`` and what is derived from it are shares in [0, 1];
    ``cr`` and ``crt`` are ratios of tokens to full thinking's, without and with probes;
    ``place`` is the median of where in its trace a cut fell, as a share of it. ``budget`` and
    ``random`` are the accuracy gained over rivals of the same mean net tokens. ``inexact``: share
    of the probes that were answered from a place close by. A baseline has no ``outcomes``."""

    name: str
    rows: Rows
    accuracy: Estimate
    difference: Estimate
    cr: float
    crt: Estimate
    net: float
    probe: float
    wasted: float
    probes: float
    stopped: float
    place: float | None
    inexact: float
    budget: Estimate | None = None
    random: Estimate | None = None
    outcomes: Sequence[Outcome] = ()

    @property
    def baseline(self) -> bool:
        return not self.outcomes


class Judge:
    """Makes points: intervals are paired and clustered by prompt."""

    def __init__(self, prompts: Sequence[str], baselines: Baselines) -> None:
        self._clusters = Clusters(prompts)
        self._baselines = baselines
        self._full = baselines.full()

    def baseline(self, rows: Rows) -> Point:
        return self._point(rows, np.zeros_like(rows.net))

    def policy(self, name: str, outcomes: Sequence[Outcome]) -> Point:
        rows = Rows(
            name,
            row(o.right for o in outcomes),
            row(o.net for o in outcomes),
            row(o.position for o in outcomes),
            row(o.stopped for o in outcomes),
        )
        return self._point(rows, row(o.probe for o in outcomes), outcomes)

    def rivals(self, net: float) -> tuple[Rows, Rows]:
        """A fixed budget and a random cue of this mean net cost."""
        return self._baselines.budget_of(net), self._baselines.random_cue_of(net)

    def _point(self, rows: Rows, probe: Array, outcomes: Sequence[Outcome] = ()) -> Point:
        clusters, full = self._clusters, self._full
        net = float(rows.net.mean())
        gained = [clusters.difference(rows.right, r.right) for r in self.rivals(net)]
        probes = sum(o.probes for o in outcomes)
        places = [o.position / o.of for o in outcomes if o.stopped and o.of]
        return Point(
            name=rows.name,
            rows=rows,
            accuracy=clusters.mean(rows.right),
            difference=clusters.difference(rows.right, full.right),
            cr=float((rows.net - probe).sum() / full.net.sum()),
            crt=clusters.ratio(rows.net, full.net),
            net=net,
            probe=float(probe.mean()),
            wasted=float(np.mean([o.wasted for o in outcomes])) if outcomes else 0.0,
            probes=probes / max(len(outcomes), 1),
            stopped=float(rows.stopped.mean()),
            place=float(np.median(places)) if places else None,
            inexact=sum(o.near + o.missing for o in outcomes) / max(probes, 1),
            budget=gained[0] if outcomes else None,
            random=gained[1] if outcomes else None,
            outcomes=outcomes,
        )


def best(points: Iterable[Point], tolerance: float) -> Point | None:
    """The cheapest policy whose paired interval lies above -``tolerance``; None where there is
    none. Chosen and measured on the same traces: measure it again on others."""
    allowed = (p for p in points if not p.baseline and p.difference.low >= -tolerance)
    return min(allowed, key=lambda point: point.net, default=None)


def front(points: Iterable[Point]) -> list[Point]:
    """The policies that no other beats in both, from the cheapest on."""
    kept: list[Point] = []
    policies = (p for p in points if not p.baseline)
    for point in sorted(policies, key=lambda p: (p.net, -p.accuracy.value)):
        if not kept or point.accuracy.value > kept[-1].accuracy.value:
            kept.append(point)
    return kept
