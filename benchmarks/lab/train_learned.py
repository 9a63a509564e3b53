"""Fit the weights of ``learned`` to recorded traces, and evaluate them out of sample.

The label of a trial answer is whether the trace ends with it, so no gold answers are needed:
the policy is trained to keep the answer as it would be, not to make it correct. Prompts are split
into folds. The threshold and all reported numbers of a fold come from weights that were fitted
without its prompts; the weights that are written are fitted to all prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

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
from adjourn.lab.probe_examples import collect_at_probes
from adjourn.lab.replay import Outcome, replay_trace
from adjourn.lab.replay_trace import ReplayDataset, ReplayTrace
from adjourn.lab.trace_log import BadTraces
from adjourn.policies.events import ProbeResult
from adjourn.policies.evidence.answers import extract_trial_answer
from adjourn.policies.evidence.mathematics import math_equal
from adjourn.policies.policy import Policy
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
    """A trial answer of the trace with this index in the dataset: its features, and whether it
    equals the final answer of the trace."""

    trace_index: int
    features: ProbeFeatures
    is_final: bool


def collect_examples(policy: Learned, dataset: ReplayDataset) -> Iterator[ProbeExample]:
    """The examples of all trial answers that ``policy`` would see if it never stopped."""
    unstopping = replace(policy, threshold=1.0, bias=-1e9)
    for index, trace, (features, result) in collect_at_probes(unstopping, dataset, _features_of):
        is_final = math_equal(extract_trial_answer(result.text), trace.answer)
        yield ProbeExample(index, features, is_final)


def _features_of(
    stopper: LearnedStopper, result: ProbeResult
) -> tuple[ProbeFeatures, ProbeResult] | None:
    features = stopper.last_features
    return None if features is None else (features, result)


def fit(policy: Learned, examples: Sequence[ProbeExample]) -> Learned:
    """``policy`` with weights fitted to the examples, in the units of the features."""
    features, is_final = _to_arrays(examples)
    scaler, model = StandardScaler(), LogisticRegression(max_iter=1000)
    make_pipeline(scaler, model).fit(features, is_final)
    weights = model.coef_[0] / scaler.scale_
    bias = float(model.intercept_[0] - weights @ scaler.mean_)
    by_name: dict[str, Any] = dict(
        zip(FEATURE_NAMES, (round(float(w), _WEIGHT_DIGITS) for w in weights), strict=True)
    )
    return replace(policy, bias=round(bias, _WEIGHT_DIGITS), **by_name)


def train(
    traces: Path, policy: Learned, out: Path, tolerance: float, console: Console | None = None
) -> Learned:
    """Fit ``policy`` to the recording ``traces``, write ``out`` and print the results.

    ``tolerance``: the accuracy that the threshold may lose, in [0, 1]. Raises BadTraces if there
    are too few examples.
    """
    console = console or Console()
    dataset = ReplayDataset(traces)
    policy = _with_recorded_entropy(policy, dataset)
    examples = list(collect_examples(policy, dataset))
    labels = {one.is_final for one in examples}
    if len(examples) < _MIN_EXAMPLES or len(labels) < 2:
        raise BadTraces(
            f"{traces}: {len(examples)} trial answers, "
            f"{sum(one.is_final for one in examples)} of them final: too few; "
            "record more prompts"
        )
    prompts = [trace.prompt_id for trace in dataset.traces]
    folds = _assign_folds(prompts)
    policy_of_fold = [
        fit(policy, [one for one in examples if folds[one.trace_index] != fold])
        for fold in track(range(max(folds) + 1), "learning", console=console)
    ]
    probabilities = np.array(
        [policy_of_fold[folds[one.trace_index]].probability(one.features) for one in examples]
    )
    builder = PointBuilder(prompts, Baselines(dataset, instant=True))
    points = [
        builder.policy_point(
            f"learned, {t:g}",
            _replay_folds([replace(p, threshold=t) for p in policy_of_fold], folds, dataset),
        )
        for t in THRESHOLDS
    ]
    deer_points = [
        builder.policy_point(
            f"deer, {t:g}", _replay_folds([Deer(threshold=t, gate=0)], [0] * len(folds), dataset)
        )
        for t in THRESHOLDS
    ]
    best_point = select_best(points, tolerance)
    threshold = THRESHOLDS[points.index(best_point)] if best_point else THRESHOLDS[-1]
    learned = replace(fit(policy, examples), threshold=threshold)
    quality = _quality(examples, probabilities)
    _write_policy(out, learned, dataset, quality, best_point)
    console.print(out_of_sample_table([*points, *deer_points], best_point))
    console.print(
        _summary(learned, quality, best_point, tolerance, out), markup=False, highlight=False
    )
    return learned


def _with_recorded_entropy(policy: Learned, dataset: ReplayDataset) -> Learned:
    """``policy`` with the entropy feature if the traces were recorded with it."""
    with_entropy = replace(policy, entropy=1.0)
    recorded = map(serialization.from_json_value, dataset.header.probes)
    return with_entropy if probe_kind(with_entropy.probe) in map(probe_kind, recorded) else policy


def _to_arrays(examples: Sequence[ProbeExample]) -> tuple[FloatArray, FloatArray]:
    """Features (examples x features), and whether each trial answer is final."""
    features = np.array([astuple(one.features) for one in examples], dtype=float)
    return features, np.array([one.is_final for one in examples], dtype=float)


def _assign_folds(prompts: Sequence[str]) -> list[int]:
    """The fold of each trace; all samples of a prompt are in one fold."""
    count = min(FOLDS, len(set(prompts)))
    if count < 2:
        raise BadTraces("all traces are of one prompt: record more prompts, to evaluate on others")
    fold_of_trace = [0] * len(prompts)
    splits = GroupKFold(count).split(prompts, groups=prompts)
    for fold, (_, held_out) in enumerate(splits):
        for index in held_out:
            fold_of_trace[index] = fold
    return fold_of_trace


def _replay_folds(
    policies: Sequence[Policy], folds: Sequence[int], dataset: ReplayDataset
) -> list[Outcome]:
    """Each trace under the policy of its fold."""
    cost_models = [ProbeCostModel() for _ in policies]

    def replay_one(fold: int, trace: ReplayTrace) -> Outcome:
        return replay_trace(policies[fold], trace, dataset.dialect, cost_models[fold], instant=True)

    return [replay_one(fold, trace) for fold, trace in zip(folds, dataset.traces, strict=True)]


def _quality(examples: Sequence[ProbeExample], probabilities: FloatArray) -> dict[str, float]:
    """How well the out-of-sample probabilities separate final answers from others, and how well the
    confidence alone does."""
    features, is_final = _to_arrays(examples)
    confidence = 1 / (1 + np.exp(-features[:, FEATURE_NAMES.index("confidence")]))
    return {
        "probes": len(examples),
        "final": float(is_final.mean()),
        "auroc": float(roc_auc_score(is_final, probabilities)),
        "auroc_of_confidence": float(roc_auc_score(is_final, confidence)),
        "brier": float(brier_score_loss(is_final, probabilities)),
        "brier_of_confidence": float(brier_score_loss(is_final, confidence)),
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
    dataset: ReplayDataset,
    quality: dict[str, float],
    best_point: Point | None,
) -> None:
    document: dict[str, Any] = {
        "adjourn": {"policy": "learned", **_learned_options(learned)},
        "learned_from": {
            "model": dataset.header.model,
            "traces": len(dataset.traces),
            "prompts": len({trace.prompt_id for trace in dataset.traces}),
        },
        "out_of_sample": quality
        | (
            {}
            if best_point is None
            else {"crt": best_point.crt.value, "difference": best_point.difference.value}
        ),
    }
    out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def out_of_sample_table(points: Sequence[Point], best_point: Point | None) -> Table:
    """One row for each point; ``best_point`` is marked."""
    table = Table(box=SIMPLE_HEAD, caption="Out of sample; probes return at once; 95 % intervals.")
    for name in ("policy, threshold", "correct, %", "± full, points", "CRT", "probes", "stopped"):
        table.add_column(name, justify="left" if name.startswith("policy") else "right")
    for point in points:
        change, crt = point.difference, point.crt
        table.add_row(
            point.name,
            f"{100 * point.accuracy.value:.1f}",
            f"{100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})",
            f"{crt.value:.3f} ({crt.low:.3f} to {crt.high:.3f})",
            f"{point.probes_per_trace:.1f}",
            f"{100 * point.stopped_share:.0f} %",
            style="bold green" if point is best_point else "",
        )
    return table


def _summary(
    learned: Learned,
    quality: dict[str, float],
    best_point: Point | None,
    tolerance: float,
    out: Path,
) -> str:
    condition = f"lose at most {100 * tolerance:g} points"
    choice = (
        f"Threshold {learned.threshold:g} is the cheapest that is shown to {condition}"
        if best_point
        else f"No threshold is shown to {condition}; the highest was taken"
    )
    return (
        f"{quality['probes']:.0f} trial answers, {100 * quality['final']:.1f} % of them final. "
        f"AUROC {quality['auroc']:.3f} (confidence alone {quality['auroc_of_confidence']:.3f}), "
        f"Brier {quality['brier']:.4f} ({quality['brier_of_confidence']:.4f}).\n"
        f"{choice}.\nWritten to {out}. The same as a policy:\n{_specification(learned)}"
    )
