"""Train the readiness probe of ``lynx`` on recorded hidden states, calibrate it, and evaluate it.

A cue is ready if the trial answer there is the one that the trace ends with, so no gold answers are
needed. Half of the prompts are for training, a quarter for calibration and a quarter for the
evaluation. All samples of a prompt are in one of these splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adjourn.lab.baselines import Baselines
from adjourn.lab.points import Point, PointBuilder
from adjourn.lab.probe_examples import collect_at_probes
from adjourn.lab.replay import replay_all
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.trace_log import BadTraces
from adjourn.lab.train_learned import out_of_sample_table
from adjourn.policies.evidence.hidden_states import HiddenStates
from adjourn.policies.evidence.mathematics import math_equal
from adjourn.policies.evidence.readiness import (
    FORMAT_VERSION,
    NOT_READY,
    READY,
    UNTRAINED,
    ReadinessClassifier,
)
from adjourn.policies.policy import Policy
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.lynx import Lynx

__all__ = ["DELTAS", "CueExample", "calibrate", "collect_cues", "fit_probe", "train"]

DELTAS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""The values of δ that are evaluated."""
_DEER_THRESHOLDS = (0.8, 0.9, 0.95, 0.98, 0.99)
_REGULARIZATIONS = (1e-4, 1e-3, 1e-2, 1e-1)
_FOLDS = 4
_MIN_CUES = 20
"""Cues of each label in each split; with fewer, δ = 0.05 cannot be guaranteed."""


@dataclass(frozen=True, slots=True)
class CueExample:
    """A cue: the hidden states there, the confidence of the trial answer there, in [0, 1], and
    whether that answer equals the final answer of the trace."""

    prompt_id: str
    states: HiddenStates
    confidence: float
    is_ready: bool


def collect_cues(dataset: ReplayDataset) -> Iterator[CueExample]:
    """Every cue of every trace at which hidden states and a trial answer were recorded."""
    # An untrained probe never stops.
    for _, trace, result in collect_at_probes(Lynx(UNTRAINED), dataset, lambda _, result: result):
        trial = trace.trial_answer_at(result.position)
        if result.hidden_states is not None and trial.position == result.position:
            is_ready = math_equal(trial.answer, trace.answer)
            yield CueExample(trace.prompt_id, result.hidden_states, trial.confidence, is_ready)


def fit_probe(model: str, examples: Sequence[CueExample]) -> ReadinessClassifier:
    """A probe trained on these cues, not yet calibrated. The regularisation is selected by
    cross-validation over prompts."""
    layers, width = examples[0].states.layers, examples[0].states.width
    features = np.array([cue.states.at_layers(layers) for cue in examples], dtype=float)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    groups = [cue.prompt_id for cue in examples]
    search = GridSearchCV(
        pipeline,
        {"logisticregression__C": _REGULARIZATIONS},
        scoring="neg_log_loss",
        cv=GroupKFold(min(_FOLDS, len(set(groups)))),
    )
    search.fit(features, [cue.is_ready for cue in examples], groups=groups)
    scaler, regression = search.best_estimator_
    weights = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weights @ scaler.mean_)
    rounded = tuple(float(f"{weight:.5g}") for weight in weights)
    return ReadinessClassifier(model, layers, width, round(bias, 5), rounded, (), (), "")


def calibrate(
    probe: ReadinessClassifier, calibration_cues: Iterable[CueExample], learned_from: dict[str, Any]
) -> bytes:
    """The document of this probe with its probabilities at the calibration cues, which must not be
    training cues."""
    probabilities: dict[bool, list[float]] = {True: [], False: []}
    for cue in calibration_cues:
        probabilities[cue.is_ready].append(round(probe.probability(cue.states), 6))
    document = {
        "version": FORMAT_VERSION,
        "model": probe.model,
        "layers": probe.layers,
        "width": probe.width,
        "learned_from": learned_from,
        "bias": probe.bias,
        "weights": list(probe.weights),
        "calibration": {
            "ready": sorted(probabilities[True]),
            "not_ready": sorted(probabilities[False]),
        },
    }
    lines = ",\n".join(
        f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()
    )
    return f"{{\n{lines}\n}}\n".encode()


def train(traces: Path, out: Path, console: Console | None = None) -> ReadinessClassifier:
    """Train on the recording ``traces``, write ``out`` and print the evaluation. Raises BadTraces
    if there are too few cues."""
    console = console or Console()
    dataset = ReplayDataset(traces)
    splits: list[list[CueExample]] = [[], [], []]
    for cue in collect_cues(dataset):
        splits[_split_of(cue.prompt_id)].append(cue)
    for name, cues in zip(("training", "calibration", "evaluation"), splits, strict=True):
        ready = sum(cue.is_ready for cue in cues)
        if min(ready, len(cues) - ready) < _MIN_CUES:
            raise BadTraces(
                f"{traces}: {len(cues)} cues for {name}, {ready} of them ready: too few; record "
                "more prompts with --for lynx, on an engine that returns hidden states"
            )
    training, calibration, evaluation = splits
    learned_from = {
        "traces": len(dataset.traces),
        "prompts": len({trace.prompt_id for trace in dataset.traces}),
        "cues": len(training),
        "calibrated_on": len(calibration),
    }
    document = calibrate(fit_probe(dataset.header.model, training), calibration, learned_from)
    out.write_bytes(document)
    probe = ReadinessClassifier.parse(document)
    console.print(_coverage_table(probe, evaluation))
    points = _evaluate(probe, dataset.filter(lambda trace: _split_of(trace.prompt_id) == 2))
    console.print(out_of_sample_table(points, None))
    console.print(_summary(probe, evaluation, out), markup=False, highlight=False)
    return probe


def _split_of(prompt: str) -> int:
    """0: training, 1: calibration, 2: evaluation. Decided by a hash, so it never changes."""
    return (0, 0, 1, 2)[hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] % 4]


def _evaluate(probe: ReadinessClassifier, dataset: ReplayDataset) -> list[Point]:
    builder = PointBuilder(
        [trace.prompt_id for trace in dataset.traces], Baselines(dataset, instant=True)
    )
    policies: list[tuple[str, Policy]] = [(f"lynx, {d:g}", Lynx(probe, d)) for d in DELTAS]
    policies += [(f"deer, {t:g}", Deer(threshold=t, gate=0)) for t in _DEER_THRESHOLDS]
    return [builder.policy_point(n, replay_all(p, dataset, instant=True)) for n, p in policies]


def _coverage_table(probe: ReadinessClassifier, cues: Sequence[CueExample]) -> Table:
    """For each δ and label: the share of cues whose prediction set contains the label, and the
    share that is predicted ready."""
    labelled = [
        (probe.probability(cue.states), READY if cue.is_ready else NOT_READY) for cue in cues
    ]
    table = Table(box=SIMPLE_HEAD, caption="Share of the cues of held-out prompts, %.")
    kinds = (READY, NOT_READY)
    table.add_column("δ", justify="right")
    for heading in ("in the set", "predicted ready"):
        for kind in kinds:
            table.add_column(f"{kind}: {heading}", justify="right")
    for delta in DELTAS:
        sets = [(probe.prediction_set(p, delta), kind) for p, kind in labelled]
        covered = [np.mean([k in labels for labels, k in sets if k == kind]) for kind in kinds]
        ready = [np.mean([labels == {READY} for labels, k in sets if k == kind]) for kind in kinds]
        table.add_row(f"{delta:g}", *(f"{100 * share:.1f}" for share in (*covered, *ready)))
    return table


def _summary(probe: ReadinessClassifier, cues: Sequence[CueExample], out: Path) -> str:
    ready = [cue.is_ready for cue in cues]
    auroc = roc_auc_score(ready, [probe.probability(cue.states) for cue in cues])
    confidence_auroc = roc_auc_score(ready, [cue.confidence for cue in cues])
    return (
        f"{len(cues)} cues evaluated, {100 * np.mean(ready):.1f} % of them ready. "
        f"AUROC {auroc:.3f} (confidence of the trial answer {confidence_auroc:.3f}).\n"
        f"Calibrated on {len(probe.ready_scores)} ready and "
        f"{len(probe.not_ready_scores)} not ready. "
        "δ is guaranteed for each cue, not for a whole request.\n"
        f"Written to {out}. To serve it:\nprobes: {{mine: {out}}}\npolicy: lynx(probe='mine')"
    )
