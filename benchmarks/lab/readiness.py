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

from benchmarks.lab.baselines import Baselines
from benchmarks.lab.learn import table
from benchmarks.lab.points import Judge, Point
from benchmarks.lab.replay import play, play_all
from benchmarks.lab.tape import Tapes
from benchmarks.lab.traces import BadTraces
from policies.appraisal import Appraiser
from policies.deer import Deer
from policies.events import Command, Event, ProbeResult
from policies.hidden_states import HiddenStates
from policies.lynx import Lynx
from policies.mathematics import equal
from policies.policy import Needs, Policy, Stopper
from policies.readiness import NOT_READY, READY, UNTRAINED, VERSION, Readiness

__all__ = ["LEVELS", "Cue", "calibrated", "cues", "fit", "learn"]

LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""δ that are tried."""
_RIVALS = (0.8, 0.9, 0.95, 0.98, 0.99)
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
_FOLDS = 4
_LEAST = 20
"""Cues of each kind in each part: below, no δ of 0.05 could be held."""


@dataclass(frozen=True, slots=True)
class Cue:
    """What was seen at one: the states, how sure the trial answer there was of itself, and whether
    it was the trace's own in the end. ``prompt`` by its id."""

    prompt: str
    states: HiddenStates
    confidence: float
    ready: bool


@dataclass(frozen=True, slots=True)
class _Watching:
    """``lynx`` as it looks, which never stops: what it sees goes to ``seen``."""

    name: ClassVar[str] = "lynx"
    seen: list[ProbeResult]

    @property
    def needs(self) -> Needs:
        return Lynx(UNTRAINED).needs

    def start(self) -> Stopper:
        return _Watcher(self.seen)


class _Watcher:
    def __init__(self, seen: list[ProbeResult]) -> None:
        self._stopper = Lynx(UNTRAINED).start()
        self._seen = seen

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, ProbeResult):
            self._seen.append(event)
        return self._stopper.observe(event)


def cues(tapes: Tapes) -> Iterator[Cue]:
    """Every cue of every trace at which both states and a trial answer were recorded."""
    for tape in tapes.tapes:
        seen: list[ProbeResult] = []
        play(_Watching(seen), tape, tapes.marks, Appraiser(), instant=True)
        for result in seen:
            trial = tape.trial(result.position)
            if result.hidden_states is not None and trial.position == result.position:
                ready = equal(trial.answer, tape.answer)
                yield Cue(tape.prompt, result.hidden_states, trial.confidence, ready)


def fit(model: str, taught: Sequence[Cue]) -> Readiness:
    """The probe that these cues teach, not calibrated. How strongly it is held back is chosen by
    prompts that it did not see."""
    layers, width = taught[0].states.layers, taught[0].states.width
    rows = np.array([cue.states.behind(layers) for cue in taught], dtype=float)
    made = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    groups = [cue.prompt for cue in taught]
    search = GridSearchCV(
        made,
        {"logisticregression__C": _STRENGTHS},
        scoring="neg_log_loss",
        cv=GroupKFold(min(_FOLDS, len(set(groups)))),
    )
    search.fit(rows, [cue.ready for cue in taught], groups=groups)
    scaler, model_ = search.best_estimator_
    weights = model_.coef_[0] / scaler.scale_
    bias = float(model_.intercept_[0] - weights @ scaler.mean_)
    short = tuple(float(f"{weight:.5g}") for weight in weights)
    return Readiness(model, layers, width, round(bias, 5), short, (), (), "")


def calibrated(probe: Readiness, held: Iterable[Cue], learned_from: dict[str, Any]) -> bytes:
    """The document of this probe, with what it says of cues that taught it nothing."""
    told: dict[bool, list[float]] = {True: [], False: []}
    for cue in held:
        told[cue.ready].append(round(probe.probability(cue.states), 6))
    document = {
        "version": VERSION,
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


def learn(traces: Path, out: Path, console: Console | None = None) -> Readiness:
    """Learn from ``traces``, write ``out`` and print what was found. Raises BadTraces where there
    is too little to learn from."""
    console = console or Console()
    tapes = Tapes(traces)
    parts: list[list[Cue]] = [[], [], []]
    for cue in cues(tapes):
        parts[_part(cue.prompt)].append(cue)
    for name, part in zip(("teach", "calibrate", "try"), parts, strict=True):
        ready = sum(cue.ready for cue in part)
        if min(ready, len(part) - ready) < _LEAST:
            raise BadTraces(
                f"{traces}: {len(part)} cues to {name} with, {ready} of them ready: too few; "
                "record more prompts with --for lynx, of an engine that tells hidden states"
            )
    taught, held, tried = parts
    learned_from = {
        "traces": len(tapes.tapes),
        "prompts": len({tape.prompt for tape in tapes.tapes}),
        "cues": len(taught),
        "calibrated_on": len(held),
    }
    document = calibrated(fit(tapes.recording.model, taught), held, learned_from)
    out.write_bytes(document)
    probe = Readiness.read(document)
    console.print(_coverage(probe, tried))
    points = _points(probe, tapes.only(lambda tape: _part(tape.prompt) == 2))
    console.print(table(points, None))
    console.print(_said(probe, tried, out), markup=False, highlight=False)
    return probe


def _part(prompt: str) -> int:
    """0 teaches, 1 calibrates, 2 is tried; the same whenever it is asked."""
    return (0, 0, 1, 2)[hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] % 4]


def _points(probe: Readiness, tapes: Tapes) -> list[Point]:
    judge = Judge([tape.prompt for tape in tapes.tapes], Baselines(tapes, instant=True))
    policies: list[tuple[str, Policy]] = [(f"lynx, {d:g}", Lynx(probe, d)) for d in LEVELS]
    policies += [(f"deer, {t:g}", Deer(threshold=t, gate=0)) for t in _RIVALS]
    return [judge.policy(n, play_all(p, tapes, instant=True)) for n, p in policies]


def _coverage(probe: Readiness, tried: Sequence[Cue]) -> Table:
    """At each δ, of the cues of each kind: how many the set holds, and how many it calls ready."""
    told = [(probe.probability(cue.states), READY if cue.ready else NOT_READY) for cue in tried]
    made = Table(box=SIMPLE_HEAD, caption="Of the cues of prompts that taught nothing, %.")
    kinds = (READY, NOT_READY)
    made.add_column("δ", justify="right")
    for what in ("in the set", "taken for ready"):
        for kind in kinds:
            made.add_column(f"{kind}: {what}", justify="right")
    for delta in LEVELS:
        sets = [(probe.labels(p, delta), kind) for p, kind in told]
        held = [np.mean([k in labels for labels, k in sets if k == kind]) for kind in kinds]
        stop = [np.mean([labels == {READY} for labels, k in sets if k == kind]) for kind in kinds]
        made.add_row(f"{delta:g}", *(f"{100 * share:.1f}" for share in (*held, *stop)))
    return made


def _said(probe: Readiness, tried: Sequence[Cue], out: Path) -> str:
    ready = [cue.ready for cue in tried]
    told = roc_auc_score(ready, [probe.probability(cue.states) for cue in tried])
    alone = roc_auc_score(ready, [cue.confidence for cue in tried])
    return (
        f"{len(tried)} cues tried, {100 * np.mean(ready):.1f} % of them ready. "
        f"AUROC {told:.3f} (a trial answer's confidence {alone:.3f}).\n"
        f"Calibrated on {len(probe.ready)} ready and {len(probe.not_ready)} not ready. "
        "δ holds for each cue, not for a request.\n"
        f"{out}; to serve it:\nprobes: {{mine: {out}}}\npolicy: lynx(probe='mine')"
    )
