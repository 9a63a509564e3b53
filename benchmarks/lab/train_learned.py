"""Learn the weights of ``learned`` from recorded traces, and say what they are worth elsewhere.

What is learned is whether a trial answer is the one that the trace ends with: no gold answer is
needed, and what is promised is that answers stay. Prompts are dealt into folds; what is told of a
fold, and the threshold, come from weights that never saw its prompts. What is written was learned
from all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adjourn.lab import serialization
from adjourn.lab.baselines import Baselines, FloatArray
from adjourn.lab.plan import probe_kind
from adjourn.lab.points import Point, PointBuilder, select_best
from adjourn.lab.replay import Outcome, replay_trace
from adjourn.lab.replay_trace import ReplayDataset, ReplayTrace
from adjourn.lab.trace_log import BadTraces
from adjourn.policies.events import Command, Event, ProbeResult
from adjourn.policies.evidence.answers import extract_trial_answer
from adjourn.policies.evidence.mathematics import math_equal
from adjourn.policies.policy import Needs, Policy, Stopper
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.learned import FEATURE_NAMES, Learned, LearnedStopper, ProbeFeatures

__all__ = ["ProbeExample", "collect_examples", "fit", "out_of_sample_table", "train"]

THRESHOLDS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
FOLDS = 5
_MIN_EXAMPLES = 50
_WEIGHT_DIGITS = 4


@dataclass(frozen=True, slots=True)
class ProbeExample:
    """A probe of a trace, by its place among the tapes: what was seen there, and whether the
    trial answer was the trace's own in the end."""

    trace_index: int
    features: ProbeFeatures
    is_final: bool


@dataclass(frozen=True, slots=True)
class _FeatureCollector:
    """``learned`` as it looks, which never stops: what it sees goes to ``seen``."""

    name: ClassVar[str] = "learned"
    policy: Learned
    collected: list[tuple[ProbeFeatures, ProbeResult]]

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def start(self) -> Stopper:
        return _CollectingStopper(self.policy.start(), self.collected)


class _CollectingStopper:
    def __init__(
        self, stopper: LearnedStopper, collected: list[tuple[ProbeFeatures, ProbeResult]]
    ) -> None:
        self._stopper = stopper
        self._collected = collected

    def observe(self, event: Event) -> Command | None:
        command = self._stopper.observe(event)
        if isinstance(event, ProbeResult) and self._stopper.last_features is not None:
            self._collected.append((self._stopper.last_features, event))
        return command


def collect_examples(policy: Learned, dataset: ReplayDataset) -> Iterator[ProbeExample]:
    """All that ``policy`` would look at in each trace, were it never to stop."""
    unstopping = replace(policy, threshold=1.0, bias=-1e9)
    for index, tape in enumerate(dataset.traces):
        seen: list[tuple[ProbeFeatures, ProbeResult]] = []
        replay_trace(
            _FeatureCollector(unstopping, seen),
            tape,
            dataset.dialect,
            ProbeCostModel(),
            instant=True,
        )
        for look, result in seen:
            yield ProbeExample(
                index, look, math_equal(extract_trial_answer(result.text), tape.answer)
            )


def fit(policy: Learned, examples: Sequence[ProbeExample]) -> Learned:
    """``policy`` with the weights that these teach, in the features' own units."""
    rows, final = _to_arrays(examples)
    scaler, model = StandardScaler(), LogisticRegression(max_iter=1000)
    make_pipeline(scaler, model).fit(rows, final)
    weights = model.coef_[0] / scaler.scale_
    bias = float(model.intercept_[0] - weights @ scaler.mean_)
    named: dict[str, Any] = dict(
        zip(FEATURE_NAMES, (round(float(w), _WEIGHT_DIGITS) for w in weights), strict=True)
    )
    return replace(policy, bias=round(bias, _WEIGHT_DIGITS), **named)


def train(
    traces: Path, policy: Learned, out: Path, tolerance: float, console: Console | None = None
) -> Learned:
    """Learn from ``traces``, write ``out`` and print what was found. ``tolerance`` is a share of
    the traces. Raises BadTraces where there is too little to learn from."""
    console = console or Console()
    tapes = ReplayDataset(traces)
    policy = _with_recorded_entropy(policy, tapes)
    looked = list(collect_examples(policy, tapes))
    kinds = {one.is_final for one in looked}
    if len(looked) < _MIN_EXAMPLES or len(kinds) < 2:
        raise BadTraces(
            f"{traces}: {len(looked)} trial answers, "
            f"{sum(one.is_final for one in looked)} of them final: too few to learn from"
        )
    prompts = [tape.prompt_id for tape in tapes.traces]
    folds = _assign_folds(prompts)
    by_fold = [
        fit(policy, [one for one in looked if folds[one.trace_index] != fold])
        for fold in track(range(max(folds) + 1), "learning", console=console)
    ]
    told = np.array([by_fold[folds[one.trace_index]].probability(one.features) for one in looked])
    judge = PointBuilder(prompts, Baselines(tapes, instant=True))
    points = [
        judge.policy_point(
            f"learned, {t:g}",
            _replay_folds([replace(p, threshold=t) for p in by_fold], folds, tapes),
        )
        for t in THRESHOLDS
    ]
    rivals = [
        judge.policy_point(
            f"deer, {t:g}", _replay_folds([Deer(threshold=t, gate=0)], [0] * len(folds), tapes)
        )
        for t in THRESHOLDS
    ]
    chosen = select_best(points, tolerance)
    threshold = THRESHOLDS[points.index(chosen)] if chosen else THRESHOLDS[-1]
    learned = replace(fit(policy, looked), threshold=threshold)
    quality = _quality(looked, told)
    _write_policy(out, learned, tapes, quality, chosen)
    console.print(out_of_sample_table([*points, *rivals], chosen))
    console.print(_summary(learned, quality, chosen, tolerance, out), markup=False, highlight=False)
    return learned


def _with_recorded_entropy(policy: Learned, tapes: ReplayDataset) -> Learned:
    """``policy``, with an eye for entropy where these traces tell of it."""
    attentive = replace(policy, entropy=1.0)
    asked = map(serialization.from_json_value, tapes.header.probes)
    return attentive if probe_kind(attentive.probe) in map(probe_kind, asked) else policy


def _to_arrays(looked: Sequence[ProbeExample]) -> tuple[FloatArray, FloatArray]:
    rows = np.array([astuple(one.features) for one in looked], dtype=float)
    return rows, np.array([one.is_final for one in looked], dtype=float)


def _assign_folds(prompts: Sequence[str]) -> list[int]:
    """The fold of each trace; all samples of a prompt are in one."""
    count = min(FOLDS, len(set(prompts)))
    if count < 2:
        raise BadTraces("traces of one prompt: what they teach cannot be tried on another")
    dealt = [0] * len(prompts)
    splits = GroupKFold(count).split(prompts, groups=prompts)
    for fold, (_, held) in enumerate(splits):
        for index in held:
            dealt[index] = fold
    return dealt


def _replay_folds(
    policies: Sequence[Policy], folds: Sequence[int], tapes: ReplayDataset
) -> list[Outcome]:
    """Each trace under its fold's policy."""
    appraisers = [ProbeCostModel() for _ in policies]

    def one(fold: int, tape: ReplayTrace) -> Outcome:
        return replay_trace(policies[fold], tape, tapes.dialect, appraisers[fold], instant=True)

    return [one(fold, tape) for fold, tape in zip(folds, tapes.traces, strict=True)]


def _quality(looked: Sequence[ProbeExample], told: FloatArray) -> dict[str, float]:
    """How well p tells final answers from others, on prompts that it was not learned from."""
    rows, final = _to_arrays(looked)
    alone = 1 / (1 + np.exp(-rows[:, FEATURE_NAMES.index("confidence")]))
    return {
        "probes": len(looked),
        "final": float(final.mean()),
        "auroc": float(roc_auc_score(final, told)),
        "auroc_of_confidence": float(roc_auc_score(final, alone)),
        "brier": float(brier_score_loss(final, told)),
        "brier_of_confidence": float(brier_score_loss(final, alone)),
    }


def _learned_options(learned: Learned) -> dict[str, float]:
    names = ("threshold", "bias", *FEATURE_NAMES)
    return {name: getattr(learned, name) for name in names}


def _specification(learned: Learned) -> str:
    options = ", ".join(f"{name}={value:g}" for name, value in _learned_options(learned).items())
    return f"learned({options})"


def _write_policy(
    out: Path,
    learned: Learned,
    tapes: ReplayDataset,
    quality: dict[str, float],
    chosen: Point | None,
) -> None:
    document: dict[str, Any] = {
        "adjourn": {"policy": "learned", **_learned_options(learned)},
        "learned_from": {
            "model": tapes.header.model,
            "traces": len(tapes.traces),
            "prompts": len({tape.prompt_id for tape in tapes.traces}),
        },
        "out_of_sample": quality
        | (
            {}
            if chosen is None
            else {"crt": chosen.crt.value, "difference": chosen.difference.value}
        ),
    }
    out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def out_of_sample_table(points: Sequence[Point], best_point: Point | None) -> Table:
    made = Table(box=SIMPLE_HEAD, caption="Out of sample, probes at once; 95 % intervals.")
    for name in ("policy, threshold", "right, %", "± full, points", "CRT", "probes", "stopped"):
        made.add_column(name, justify="left" if name.startswith("policy") else "right")
    for point in points:
        change, crt = point.difference, point.crt
        made.add_row(
            point.name,
            f"{100 * point.accuracy.value:.1f}",
            f"{100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})",
            f"{crt.value:.3f} ({crt.low:.3f} to {crt.high:.3f})",
            f"{point.probes_per_trace:.1f}",
            f"{100 * point.stopped_share:.0f} %",
            style="bold green" if point is best_point else "",
        )
    return made


def _summary(
    learned: Learned, quality: dict[str, float], chosen: Point | None, tolerance: float, out: Path
) -> str:
    lost = f"lose at most {100 * tolerance:g} points"
    kept = (
        f"threshold {learned.threshold:g} is the cheapest shown to {lost}"
        if chosen
        else f"no threshold is shown to {lost}; the highest was taken"
    )
    return (
        f"{quality['probes']:.0f} trial answers, {100 * quality['final']:.1f} % of them final. "
        f"AUROC {quality['auroc']:.3f} (confidence alone {quality['auroc_of_confidence']:.3f}), "
        f"Brier {quality['brier']:.4f} ({quality['brier_of_confidence']:.4f}).\n"
        f"{kept}.\n{out}, or as a policy:\n{_specification(learned)}"
    )
