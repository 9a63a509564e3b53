"""The cost and the accuracy of one policy setting over all traces, compared with baselines."""

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
    """The results of a policy or a baseline.

    ``accuracy``, and the differences of accuracies, are shares in [0, 1]. ``cr``, ``crt``: net
    tokens divided by those of full thinking, without and with probes. ``stop_fraction``: the median
    of where in its trace a cut fell, as a share of the trace. ``gain_over_budget`` and
    ``gain_over_random_cue``: accuracy minus that of the baseline with the same mean net tokens.
    ``inexact_share``: of the probes, those whose result was recorded a few tokens earlier, or not
    at all. A baseline has no ``outcomes``.
    """

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
    """Builds points with intervals that are paired and clustered by prompt."""

    def __init__(self, prompts: Sequence[str], baselines: Baselines) -> None:
        self._bootstrap = ClusterBootstrap(prompts)
        self._baselines = baselines
        self._full_thinking = baselines.full_thinking()

    def baseline_point(self, scores: PerTraceScores) -> Point:
        return self._build_point(scores, np.zeros_like(scores.net_tokens))

    def policy_point(self, name: str, outcomes: Sequence[Outcome]) -> Point:
        scores = PerTraceScores(
            name,
            to_array(o.correct for o in outcomes),
            to_array(o.net_tokens for o in outcomes),
            to_array(o.kept_tokens for o in outcomes),
            to_array(o.stopped for o in outcomes),
        )
        return self._build_point(scores, to_array(o.probe_tokens for o in outcomes), outcomes)

    def equal_cost_baselines(self, net_tokens: float) -> tuple[PerTraceScores, PerTraceScores]:
        """A fixed budget and a random cue with these mean net tokens."""
        return self._baselines.budget_at_cost(net_tokens), self._baselines.random_cue_at_cost(
            net_tokens
        )

    def _build_point(
        self, scores: PerTraceScores, probe_tokens: FloatArray, outcomes: Sequence[Outcome] = ()
    ) -> Point:
        bootstrap, full = self._bootstrap, self._full_thinking
        net = float(scores.net_tokens.mean())
        gains = [
            bootstrap.difference(scores.correct, baseline.correct)
            for baseline in self.equal_cost_baselines(net)
        ]
        probes = sum(o.probe_count for o in outcomes)
        stop_fractions = [
            o.kept_tokens / o.full_tokens for o in outcomes if o.stopped and o.full_tokens
        ]
        return Point(
            name=scores.name,
            per_trace=scores,
            accuracy=bootstrap.mean(scores.correct),
            difference=bootstrap.difference(scores.correct, full.correct),
            cr=float((scores.net_tokens - probe_tokens).sum() / full.net_tokens.sum()),
            crt=bootstrap.ratio(scores.net_tokens, full.net_tokens),
            net_tokens=net,
            probe_tokens=float(probe_tokens.mean()),
            wasted_tokens=float(np.mean([o.wasted_tokens for o in outcomes])) if outcomes else 0.0,
            probes_per_trace=probes / max(len(outcomes), 1),
            stopped_share=float(scores.stopped.mean()),
            stop_fraction=float(np.median(stop_fractions)) if stop_fractions else None,
            inexact_share=sum(o.inexact_probes + o.missing_probes for o in outcomes)
            / max(probes, 1),
            gain_over_budget=gains[0] if outcomes else None,
            gain_over_random_cue=gains[1] if outcomes else None,
            outcomes=outcomes,
        )


def select_best(points: Iterable[Point], tolerance: float) -> Point | None:
    """The cheapest policy whose whole paired interval is at least -``tolerance``; None if there is
    none. It is selected and measured on the same traces, so measure it again on others."""
    allowed = (p for p in points if not p.is_baseline and p.difference.low >= -tolerance)
    return min(allowed, key=lambda point: point.net_tokens, default=None)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The policies that no other beats in both cost and accuracy, cheapest first."""
    kept: list[Point] = []
    policies = (p for p in points if not p.is_baseline)
    for point in sorted(policies, key=lambda p: (p.net_tokens, -p.accuracy.value)):
        if not kept or point.accuracy.value > kept[-1].accuracy.value:
            kept.append(point)
    return kept
