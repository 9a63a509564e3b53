"""One setting of one policy over all traces: what it costs, what it keeps, against whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from adjourn.lab.baselines import Baselines, FloatArray, PerTraceScores, to_array
from adjourn.lab.intervals import ClusterBootstrap, Estimate
from adjourn.lab.replay import Outcome

__all__ = ["Point", "PointBuilder", "pareto_front", "select_best"]


@dataclass(frozen=True, slots=True)
class Point:
    """A policy or a baseline. ``accuracy`` and what is derived from it are shares in [0, 1];
    ``cr`` and ``crt`` are ratios of tokens to full thinking's, without and with probes;
    ``place`` is the median of where in its trace a cut fell, as a share of it. ``budget`` and
    ``random`` are the accuracy gained over rivals of the same mean net tokens. ``inexact``: share
    of the probes that were answered from a place close by. A baseline has no ``outcomes``."""

    name: str
    per_trace: PerTraceScores
    accuracy: Estimate
    difference: Estimate
    cr: float
    crt: Estimate
    net_tokens: float
    probe_tokens: float
    wasted_tokens: float
    probes_per_trace: float
    stopped_share: float
    stop_fraction: float | None
    inexact_share: float
    gain_over_budget: Estimate | None = None
    gain_over_random_cue: Estimate | None = None
    outcomes: Sequence[Outcome] = ()

    @property
    def is_baseline(self) -> bool:
        return not self.outcomes


class PointBuilder:
    """Makes points: intervals are paired and clustered by prompt."""

    def __init__(self, prompts: Sequence[str], baselines: Baselines) -> None:
        self._bootstrap = ClusterBootstrap(prompts)
        self._baselines = baselines
        self._full_thinking = baselines.full_thinking()

    def baseline_point(self, scores: PerTraceScores) -> Point:
        return self._build_point(scores, np.zeros_like(scores.net_tokens))

    def policy_point(self, name: str, outcomes: Sequence[Outcome]) -> Point:
        rows = PerTraceScores(
            name,
            to_array(o.correct for o in outcomes),
            to_array(o.net_tokens for o in outcomes),
            to_array(o.kept_tokens for o in outcomes),
            to_array(o.stopped for o in outcomes),
        )
        return self._build_point(rows, to_array(o.probe_tokens for o in outcomes), outcomes)

    def equal_cost_baselines(self, net_tokens: float) -> tuple[PerTraceScores, PerTraceScores]:
        """A fixed budget and a random cue of this mean net cost."""
        return self._baselines.budget_at_cost(net_tokens), self._baselines.random_cue_at_cost(
            net_tokens
        )

    def _build_point(
        self, rows: PerTraceScores, probe: FloatArray, outcomes: Sequence[Outcome] = ()
    ) -> Point:
        clusters, full = self._bootstrap, self._full_thinking
        net = float(rows.net_tokens.mean())
        gained = [
            clusters.difference(rows.correct, r.correct) for r in self.equal_cost_baselines(net)
        ]
        probes = sum(o.probe_count for o in outcomes)
        places = [o.kept_tokens / o.full_tokens for o in outcomes if o.stopped and o.full_tokens]
        return Point(
            name=rows.name,
            per_trace=rows,
            accuracy=clusters.mean(rows.correct),
            difference=clusters.difference(rows.correct, full.correct),
            cr=float((rows.net_tokens - probe).sum() / full.net_tokens.sum()),
            crt=clusters.ratio(rows.net_tokens, full.net_tokens),
            net_tokens=net,
            probe_tokens=float(probe.mean()),
            wasted_tokens=float(np.mean([o.wasted_tokens for o in outcomes])) if outcomes else 0.0,
            probes_per_trace=probes / max(len(outcomes), 1),
            stopped_share=float(rows.stopped.mean()),
            stop_fraction=float(np.median(places)) if places else None,
            inexact_share=sum(o.inexact_probes + o.missing_probes for o in outcomes)
            / max(probes, 1),
            gain_over_budget=gained[0] if outcomes else None,
            gain_over_random_cue=gained[1] if outcomes else None,
            outcomes=outcomes,
        )


def select_best(points: Iterable[Point], tolerance: float) -> Point | None:
    """The cheapest policy whose paired interval lies above -``tolerance``; None where there is
    none. Chosen and measured on the same traces: measure it again on others."""
    allowed = (p for p in points if not p.is_baseline and p.difference.low >= -tolerance)
    return min(allowed, key=lambda point: point.net_tokens, default=None)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The policies that no other beats in both, from the cheapest on."""
    kept: list[Point] = []
    policies = (p for p in points if not p.is_baseline)
    for point in sorted(policies, key=lambda p: (p.net_tokens, -p.accuracy.value)):
        if not kept or point.accuracy.value > kept[-1].accuracy.value:
            kept.append(point)
    return kept
