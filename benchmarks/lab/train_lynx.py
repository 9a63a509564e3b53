"""Learn the probe of ``lynx`` from recorded hidden states, calibrate it, and try it elsewhere.

A cue is ready where the trial answer there is the one that the trace ends with: no gold answer is
needed. Half of the prompts teach, a quarter calibrates, and what is told of the probe is from the
last quarter, of which nothing was learned. All samples of a prompt are in one part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
from adjourn.lab.replay import replay_all, replay_trace
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.trace_log import BadTraces
from adjourn.lab.train_learned import out_of_sample_table
from adjourn.policies.events import Command, Event, ProbeResult
from adjourn.policies.evidence.hidden_states import HiddenStates
from adjourn.policies.evidence.mathematics import math_equal
from adjourn.policies.evidence.readiness import (
    FORMAT_VERSION,
    NOT_READY,
    READY,
    UNTRAINED,
    ReadinessClassifier,
)
from adjourn.policies.policy import Needs, Policy, Stopper
from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.lynx import Lynx

__all__ = ["DELTAS", "CueExample", "calibrate", "collect_cues", "fit_probe", "train"]

DELTAS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""δ that are tried."""
_DEER_THRESHOLDS = (0.8, 0.9, 0.95, 0.98, 0.99)
_REGULARIZATIONS = (1e-4, 1e-3, 1e-2, 1e-1)
_FOLDS = 4
_MIN_CUES = 20
"""Cues of each kind in each part: below, no δ of 0.05 could be held."""


@dataclass(frozen=True, slots=True)
class CueExample:
    """What was seen at one: the states, how sure the trial answer there was of itself, and whether
    it was the trace's own in the end. ``prompt`` by its id."""

    prompt_id: str
    states: HiddenStates
    confidence: float
    is_ready: bool


@dataclass(frozen=True, slots=True)
class _StateCollector:
    """``lynx`` as it looks, which never stops: what it sees goes to ``seen``."""

    name: ClassVar[str] = "lynx"
    collected: list[ProbeResult]

    @property
    def needs(self) -> Needs:
        return Lynx(UNTRAINED).needs

    def start(self) -> Stopper:
        return _CollectingStopper(self.collected)


class _CollectingStopper:
    def __init__(self, collected: list[ProbeResult]) -> None:
        self._stopper = Lynx(UNTRAINED).start()
        self._collected = collected

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, ProbeResult):
            self._collected.append(event)
        return self._stopper.observe(event)


def collect_cues(dataset: ReplayDataset) -> Iterator[CueExample]:
    """Every cue of every trace at which both states and a trial answer were recorded."""
    for tape in dataset.traces:
        seen: list[ProbeResult] = []
        replay_trace(_StateCollector(seen), tape, dataset.dialect, ProbeCostModel(), instant=True)
        for result in seen:
            trial = tape.trial_answer_at(result.position)
            if result.hidden_states is not None and trial.position == result.position:
                ready = math_equal(trial.answer, tape.answer)
                yield CueExample(tape.prompt_id, result.hidden_states, trial.confidence, ready)


def fit_probe(model: str, examples: Sequence[CueExample]) -> ReadinessClassifier:
    """The probe that these cues teach, not calibrated. How strongly it is held back is chosen by
    prompts that it did not see."""
    layers, width = examples[0].states.layers, examples[0].states.width
    rows = np.array([cue.states.at_layers(layers) for cue in examples], dtype=float)
    made = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    groups = [cue.prompt_id for cue in examples]
    search = GridSearchCV(
        made,
        {"logisticregression__C": _REGULARIZATIONS},
        scoring="neg_log_loss",
        cv=GroupKFold(min(_FOLDS, len(set(groups)))),
    )
    search.fit(rows, [cue.is_ready for cue in examples], groups=groups)
    scaler, model_ = search.best_estimator_
    weights = model_.coef_[0] / scaler.scale_
    bias = float(model_.intercept_[0] - weights @ scaler.mean_)
    short = tuple(float(f"{weight:.5g}") for weight in weights)
    return ReadinessClassifier(model, layers, width, round(bias, 5), short, (), (), "")


def calibrate(
    probe: ReadinessClassifier, calibration_cues: Iterable[CueExample], learned_from: dict[str, Any]
) -> bytes:
    """The document of this probe, with what it says of cues that taught it nothing."""
    told: dict[bool, list[float]] = {True: [], False: []}
    for cue in calibration_cues:
        told[cue.is_ready].append(round(probe.probability(cue.states), 6))
    document = {
        "version": FORMAT_VERSION,
        "model": probe.model,
        "layers": probe.layers,
        "width": probe.width,
        "learned_from": learned_from,
        "bias": probe.bias,
        "weights": list(probe.weights),
        "calibration": {"ready": sorted(told[True]), "not_ready": sorted(told[False])},
    }
    lines = ",\n".join(
        f" {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()
    )
    return f"{{\n{lines}\n}}\n".encode()


def train(traces: Path, out: Path, console: Console | None = None) -> ReadinessClassifier:
    """Learn from ``traces``, write ``out`` and print what was found. Raises BadTraces where there
    is too little to learn from."""
    console = console or Console()
    tapes = ReplayDataset(traces)
    parts: list[list[CueExample]] = [[], [], []]
    for cue in collect_cues(tapes):
        parts[_split_of(cue.prompt_id)].append(cue)
    for name, part in zip(("teach", "calibrate", "try"), parts, strict=True):
        ready = sum(cue.is_ready for cue in part)
        if min(ready, len(part) - ready) < _MIN_CUES:
            raise BadTraces(
                f"{traces}: {len(part)} cues to {name} with, {ready} of them ready: too few; "
                "record more prompts with --for lynx, of an engine that tells hidden states"
            )
    taught, held, tried = parts
    learned_from = {
        "traces": len(tapes.traces),
        "prompts": len({tape.prompt_id for tape in tapes.traces}),
        "cues": len(taught),
        "calibrated_on": len(held),
    }
    document = calibrate(fit_probe(tapes.header.model, taught), held, learned_from)
    out.write_bytes(document)
    probe = ReadinessClassifier.parse(document)
    console.print(_coverage_table(probe, tried))
    points = _evaluate(probe, tapes.filter(lambda tape: _split_of(tape.prompt_id) == 2))
    console.print(out_of_sample_table(points, None))
    console.print(_summary(probe, tried, out), markup=False, highlight=False)
    return probe


def _split_of(prompt: str) -> int:
    """0 teaches, 1 calibrates, 2 is tried; the same whenever it is asked."""
    return (0, 0, 1, 2)[hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] % 4]


def _evaluate(probe: ReadinessClassifier, tapes: ReplayDataset) -> list[Point]:
    judge = PointBuilder([tape.prompt_id for tape in tapes.traces], Baselines(tapes, instant=True))
    policies: list[tuple[str, Policy]] = [(f"lynx, {d:g}", Lynx(probe, d)) for d in DELTAS]
    policies += [(f"deer, {t:g}", Deer(threshold=t, gate=0)) for t in _DEER_THRESHOLDS]
    return [judge.policy_point(n, replay_all(p, tapes, instant=True)) for n, p in policies]


def _coverage_table(probe: ReadinessClassifier, tried: Sequence[CueExample]) -> Table:
    """At each δ, of the cues of each kind: how many the set holds, and how many it calls ready."""
    told = [(probe.probability(cue.states), READY if cue.is_ready else NOT_READY) for cue in tried]
    made = Table(box=SIMPLE_HEAD, caption="Of the cues of prompts that taught nothing, %.")
    kinds = (READY, NOT_READY)
    made.add_column("δ", justify="right")
    for what in ("in the set", "taken for ready"):
        for kind in kinds:
            made.add_column(f"{kind}: {what}", justify="right")
    for delta in DELTAS:
        sets = [(probe.prediction_set(p, delta), kind) for p, kind in told]
        held = [np.mean([k in labels for labels, k in sets if k == kind]) for kind in kinds]
        stop = [np.mean([labels == {READY} for labels, k in sets if k == kind]) for kind in kinds]
        made.add_row(f"{delta:g}", *(f"{100 * share:.1f}" for share in (*held, *stop)))
    return made


def _summary(probe: ReadinessClassifier, tried: Sequence[CueExample], out: Path) -> str:
    ready = [cue.is_ready for cue in tried]
    told = roc_auc_score(ready, [probe.probability(cue.states) for cue in tried])
    alone = roc_auc_score(ready, [cue.confidence for cue in tried])
    return (
        f"{len(tried)} cues tried, {100 * np.mean(ready):.1f} % of them ready. "
        f"AUROC {told:.3f} (a trial answer's confidence {alone:.3f}).\n"
        f"Calibrated on {len(probe.ready_scores)} ready and "
        f"{len(probe.not_ready_scores)} not ready. "
        "δ holds for each cue, not for a request.\n"
        f"{out}; to serve it:\nprobes: {{mine: {out}}}\npolicy: lynx(probe='mine')"
    )
