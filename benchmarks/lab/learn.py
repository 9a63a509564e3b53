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

from benchmarks.lab import values
from benchmarks.lab.baselines import Array, Baselines
from benchmarks.lab.plan import kind
from benchmarks.lab.points import Judge, Point, best
from benchmarks.lab.replay import Outcome, play
from benchmarks.lab.tape import Tape, Tapes
from benchmarks.lab.traces import BadTraces
from policies.answers import trial_answer
from policies.appraisal import Appraiser
from policies.deer import Deer
from policies.events import Command, Event, ProbeResult
from policies.learned import FEATURES, Learned, LearnedStopper, Look
from policies.mathematics import equal
from policies.policy import Needs, Policy, Stopper

__all__ = ["Looked", "fit", "learn", "looks", "table"]

THRESHOLDS = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
FOLDS = 5
_LEAST = 50
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Looked:
    """A probe of a trace, by its place among the tapes: what was seen there, and whether the
    trial answer was the trace's own in the end."""

    tape: int
    look: Look
    final: bool


@dataclass(frozen=True, slots=True)
class _Watching:
    """``learned`` as it looks, which never stops: what it sees goes to ``seen``."""

    name: ClassVar[str] = "learned"
    policy: Learned
    seen: list[tuple[Look, ProbeResult]]

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def start(self) -> Stopper:
        return _Watcher(self.policy.start(), self.seen)


class _Watcher:
    def __init__(self, stopper: LearnedStopper, seen: list[tuple[Look, ProbeResult]]) -> None:
        self._stopper = stopper
        self._seen = seen

    def observe(self, event: Event) -> Command | None:
        command = self._stopper.observe(event)
        if isinstance(event, ProbeResult) and self._stopper.look is not None:
            self._seen.append((self._stopper.look, event))
        return command


def looks(policy: Learned, tapes: Tapes) -> Iterator[Looked]:
    """All that ``policy`` would look at in each trace, were it never to stop."""
    unstopping = replace(policy, threshold=1.0, bias=-1e9)
    for index, tape in enumerate(tapes.tapes):
        seen: list[tuple[Look, ProbeResult]] = []
        play(_Watching(unstopping, seen), tape, tapes.marks, Appraiser(), instant=True)
        for look, result in seen:
            yield Looked(index, look, equal(trial_answer(result.text), tape.answer))


def fit(policy: Learned, looked: Sequence[Looked]) -> Learned:
    """``policy`` with the weights that these teach, in the features' own units."""
    rows, final = _arrays(looked)
    scaler, model = StandardScaler(), LogisticRegression(max_iter=1000)
    make_pipeline(scaler, model).fit(rows, final)
    weights = model.coef_[0] / scaler.scale_
    bias = float(model.intercept_[0] - weights @ scaler.mean_)
    named: dict[str, Any] = dict(
        zip(FEATURES, (round(float(w), _DIGITS) for w in weights), strict=True)
    )
    return replace(policy, bias=round(bias, _DIGITS), **named)


def learn(
    traces: Path, policy: Learned, out: Path, tolerance: float, console: Console | None = None
) -> Learned:
    """Learn from ``traces``, write ``out`` and print what was found. ``tolerance`` is a share of
    the traces. Raises BadTraces where there is too little to learn from."""
    console = console or Console()
    tapes = Tapes(traces)
    policy = _looking(policy, tapes)
    looked = list(looks(policy, tapes))
    kinds = {one.final for one in looked}
    if len(looked) < _LEAST or len(kinds) < 2:
        raise BadTraces(
            f"{traces}: {len(looked)} trial answers, "
            f"{sum(one.final for one in looked)} of them final: too few to learn from"
        )
    prompts = [tape.prompt for tape in tapes.tapes]
    folds = _folds(prompts)
    by_fold = [
        fit(policy, [one for one in looked if folds[one.tape] != fold])
        for fold in track(range(max(folds) + 1), "learning", console=console)
    ]
    told = np.array([by_fold[folds[one.tape]].probability(one.look) for one in looked])
    judge = Judge(prompts, Baselines(tapes, instant=True))
    points = [
        judge.policy(
            f"learned, {t:g}", _played([replace(p, threshold=t) for p in by_fold], folds, tapes)
        )
        for t in THRESHOLDS
    ]
    rivals = [
        judge.policy(f"deer, {t:g}", _played([Deer(threshold=t, gate=0)], [0] * len(folds), tapes))
        for t in THRESHOLDS
    ]
    chosen = best(points, tolerance)
    threshold = THRESHOLDS[points.index(chosen)] if chosen else THRESHOLDS[-1]
    learned = replace(fit(policy, looked), threshold=threshold)
    quality = _quality(looked, told)
    _write(out, learned, tapes, quality, chosen)
    console.print(table([*points, *rivals], chosen))
    console.print(_said(learned, quality, chosen, tolerance, out), markup=False, highlight=False)
    return learned


def _looking(policy: Learned, tapes: Tapes) -> Learned:
    """``policy``, with an eye for entropy where these traces tell of it."""
    attentive = replace(policy, entropy=1.0)
    asked = map(values.read, tapes.recording.probes)
    return attentive if kind(attentive.probe) in map(kind, asked) else policy


def _arrays(looked: Sequence[Looked]) -> tuple[Array, Array]:
    rows = np.array([astuple(one.look) for one in looked], dtype=float)
    return rows, np.array([one.final for one in looked], dtype=float)


def _folds(prompts: Sequence[str]) -> list[int]:
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


def _played(policies: Sequence[Policy], folds: Sequence[int], tapes: Tapes) -> list[Outcome]:
    """Each trace under its fold's policy."""
    appraisers = [Appraiser() for _ in policies]

    def one(fold: int, tape: Tape) -> Outcome:
        return play(policies[fold], tape, tapes.marks, appraisers[fold], instant=True)

    return [one(fold, tape) for fold, tape in zip(folds, tapes.tapes, strict=True)]


def _quality(looked: Sequence[Looked], told: Array) -> dict[str, float]:
    """How well p tells final answers from others, on prompts that it was not learned from."""
    rows, final = _arrays(looked)
    alone = 1 / (1 + np.exp(-rows[:, FEATURES.index("confidence")]))
    return {
        "probes": len(looked),
        "final": float(final.mean()),
        "auroc": float(roc_auc_score(final, told)),
        "auroc_of_confidence": float(roc_auc_score(final, alone)),
        "brier": float(brier_score_loss(final, told)),
        "brier_of_confidence": float(brier_score_loss(final, alone)),
    }


def _options(learned: Learned) -> dict[str, float]:
    names = ("threshold", "bias", *FEATURES)
    return {name: getattr(learned, name) for name in names}


def _specification(learned: Learned) -> str:
    options = ", ".join(f"{name}={value:g}" for name, value in _options(learned).items())
    return f"learned({options})"


def _write(
    out: Path, learned: Learned, tapes: Tapes, quality: dict[str, float], chosen: Point | None
) -> None:
    document: dict[str, Any] = {
        "adjourn": {"policy": "learned", **_options(learned)},
        "learned_from": {
            "model": tapes.recording.model,
            "traces": len(tapes.tapes),
            "prompts": len({tape.prompt for tape in tapes.tapes}),
        },
        "out_of_sample": quality
        | (
            {}
            if chosen is None
            else {"crt": chosen.crt.value, "difference": chosen.difference.value}
        ),
    }
    out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def table(points: Sequence[Point], chosen: Point | None) -> Table:
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
            f"{point.probes:.1f}",
            f"{100 * point.stopped:.0f} %",
            style="bold green" if point is chosen else "",
        )
    return made


def _said(
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
