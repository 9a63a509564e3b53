"""Compare policies over one recording: the table, the plot, the page and the numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.lab.baselines import Baselines
from benchmarks.lab.grid import expand
from benchmarks.lab.intervals import Estimate
from benchmarks.lab.page import page
from benchmarks.lab.plan import foretold
from benchmarks.lab.plot import plot
from benchmarks.lab.points import Judge, Point, best, front
from benchmarks.lab.probes import parse
from benchmarks.lab.replay import sweep
from benchmarks.lab.report import notes, table
from benchmarks.lab.tape import Tapes
from policies.policy import Needs
from policies.registry import BadPolicy
from policies.sampling import Sampling

__all__ = ["compare"]

_MISSING = 0.01
"""Share of a policy's probes that may be without a record."""
_INEXACT = 0.25
_ROWS = 40
_WIDTH = 200


def compare(
    traces: Path,
    specifications: Sequence[str],
    out: Path,
    tolerance: float,
    *,
    instant: bool = False,
    workers: int | None = None,
    console: Console | None = None,
) -> list[Point]:
    """Play all that the specifications stand for. ``tolerance`` is a share of the traces.
    Raises BadTraces and BadPolicy."""
    console = console or _console()
    names = list(dict.fromkeys(name for line in specifications for name in expand(line)))
    for name in names:
        if isinstance(policy := parse(name), Sampling):
            raise BadPolicy(f"{name}: runs over several traces, and each is replayed by itself")
        foretold(policy)
    tapes = Tapes(traces)
    for name in names:
        if (why := _untold(name, parse(name).needs, tapes)) is not None:
            raise BadPolicy(f"{name}: {why}")
    baselines = Baselines(tapes, instant=instant)
    judge = Judge([tape.prompt for tape in tapes.tapes], baselines)
    began = time.perf_counter()
    played = sweep(names, tapes, instant=instant, workers=workers)
    points = [
        judge.policy(name, outcomes)
        for name, outcomes in zip(
            names, track(played, "replaying", len(names), console=console), strict=True
        )
    ]
    rate = len(names) * len(tapes.tapes) / (time.perf_counter() - began)
    for point in points:
        _check(point)
    marked = best(points, tolerance)
    points = _baselines(judge, baselines, marked or points[0]) + sorted(points, key=_net)
    said = [*notes(tapes, points, instant=instant), _verdict(marked, tolerance)]
    console.print(table(_shown(points, marked), marked))
    console.print("\n".join(said), markup=False, highlight=False)
    _write(out, tapes, points, baselines, marked, said)
    console.print(f"{rate:.0f} traces a second; {out}/", markup=False, highlight=False)
    return points


def _untold(name: str, needs: Needs, tapes: Tapes) -> str | None:
    """What a recording lacks of what a policy sees with its tokens or its probes."""
    if needs.logprobs > tapes.logprobs:
        return f"log-probabilities were not recorded: record with --for '{name}'"
    if needs.embeddings and not tapes.embedded:
        return f"steps were not embedded: record with --for '{name}' --embeddings-url URL"
    if others := needs.models - {tapes.recording.model}:
        return f"learned from {', '.join(others)}, and this is of {tapes.recording.model}"
    if lacking := sorted(needs.hidden_states - tapes.layers):
        told = ", ".join(f"{number} (width {width})" for number, width in lacking)
        return f"hidden states behind layer {told} were not recorded: record with --for lynx"
    return None


def _console() -> Console:
    """Where nobody looks, as wide as the table."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _net(point: Point) -> float:
    return point.net


def _baselines(judge: Judge, baselines: Baselines, marked: Point) -> list[Point]:
    """The five of them; the budget and the random cue cost what the marked policy costs."""
    rows = [baselines.full(), baselines.none(), *judge.rivals(marked.net), baselines.oracle()]
    return [judge.baseline(one) for one in rows]


def _check(point: Point) -> None:
    """A policy that asks for what was not recorded would be judged by its failures."""
    probes = sum(o.probes for o in point.outcomes)
    missing = sum(o.missing for o in point.outcomes)
    if missing > _MISSING * probes or point.inexact > _INEXACT:
        raise BadPolicy(
            f"{point.name}: of {probes} probes {missing} were not recorded, and "
            f"{100 * point.inexact:.0f} % not where it looks: record with --for '{point.name}'"
        )


def _verdict(marked: Point | None, tolerance: float) -> str:
    allowed = f"at most {100 * tolerance:g} points lost, at 95 % confidence"
    if marked is None:
        return f"No setting is shown to keep what was asked for: {allowed}."
    return (
        f"The best setting: {marked.name} ({allowed}), {100 * (1 - marked.crt.value):.1f} % fewer "
        "tokens, net. It was chosen on these traces: replay it on others before you believe it."
    )


def _shown(points: Sequence[Point], marked: Point | None) -> list[Point]:
    """All, or of a large sweep the baselines and the front."""
    if len(points) <= _ROWS:
        return list(points)
    kept = {id(point) for point in (*front(points), marked)}
    return [point for point in points if point.baseline or id(point) in kept]


def _write(
    out: Path,
    tapes: Tapes,
    points: Sequence[Point],
    baselines: Baselines,
    marked: Point | None,
    said: Sequence[str],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    plot(points, baselines, marked, out / "pareto.png")
    (out / "explore.html").write_text(page(tapes, points, baselines, marked, said), "utf-8")
    numbers = {"notes": list(said), "points": [_numbers(point) for point in points]}
    (out / "points.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")


def _numbers(point: Point) -> dict[str, Any]:
    names = [name for name in Point.__dataclass_fields__ if name not in ("rows", "outcomes")]
    values = {name: getattr(point, name) for name in names}
    return {key: asdict(v) if isinstance(v, Estimate) else v for key, v in values.items()}
