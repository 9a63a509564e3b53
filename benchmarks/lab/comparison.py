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

from adjourn.lab.baselines import Baselines
from adjourn.lab.grid import expand
from adjourn.lab.intervals import Estimate
from adjourn.lab.page import render_page
from adjourn.lab.plan import require_replayable
from adjourn.lab.plot import plot
from adjourn.lab.points import Point, PointBuilder, pareto_front, select_best
from adjourn.lab.policy_parser import parse_policy
from adjourn.lab.replay import sweep
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.lab.report import comparison_table, notes
from adjourn.policies.policy import Needs
from adjourn.policies.registry import BadPolicy
from adjourn.policies.sampling import SamplingPolicy

__all__ = ["compare"]

_MAX_MISSING_SHARE = 0.01
"""Share of a policy's probes that may be without a record."""
_MAX_INEXACT_SHARE = 0.25
_MAX_TABLE_ROWS = 40
_CONSOLE_WIDTH = 200


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
        if isinstance(policy := parse_policy(name), SamplingPolicy):
            raise BadPolicy(f"{name}: runs over several traces, and each is replayed by itself")
        require_replayable(policy)
    tapes = ReplayDataset(traces)
    for name in names:
        if (why := _missing_data_reason(name, parse_policy(name).needs, tapes)) is not None:
            raise BadPolicy(f"{name}: {why}")
    baselines = Baselines(tapes, instant=instant)
    judge = PointBuilder([tape.prompt_id for tape in tapes.traces], baselines)
    began = time.perf_counter()
    played = sweep(names, tapes, instant=instant, workers=workers)
    points = [
        judge.policy_point(name, outcomes)
        for name, outcomes in zip(
            names, track(played, "replaying", len(names), console=console), strict=True
        )
    ]
    rate = len(names) * len(tapes.traces) / (time.perf_counter() - began)
    for point in points:
        _require_coverage(point)
    marked = select_best(points, tolerance)
    points = _baseline_points(judge, baselines, marked or points[0]) + sorted(
        points, key=_net_tokens
    )
    said = [*notes(tapes, points, instant=instant), _best_setting_note(marked, tolerance)]
    console.print(comparison_table(_points_to_show(points, marked), marked))
    console.print("\n".join(said), markup=False, highlight=False)
    _write_files(out, tapes, points, baselines, marked, said)
    console.print(f"{rate:.0f} traces a second; {out}/", markup=False, highlight=False)
    return points


def _missing_data_reason(name: str, needs: Needs, tapes: ReplayDataset) -> str | None:
    """What a recording lacks of what a policy sees with its tokens or its probes."""
    if needs.logprobs > tapes.logprob_count:
        return f"log-probabilities were not recorded: record with --for '{name}'"
    if needs.embeddings and not tapes.has_embeddings:
        return f"steps were not embedded: record with --for '{name}' --embeddings-url URL"
    if others := needs.models - {tapes.header.model}:
        return f"learned from {', '.join(others)}, and this is of {tapes.header.model}"
    if lacking := sorted(needs.hidden_states - tapes.hidden_state_layers):
        told = ", ".join(f"{number} (width {width})" for number, width in lacking)
        return f"hidden states behind layer {told} were not recorded: record with --for lynx"
    return None


def _console() -> Console:
    """Where nobody looks, as wide as the table."""
    console = Console()
    return console if console.is_terminal else Console(width=_CONSOLE_WIDTH)


def _net_tokens(point: Point) -> float:
    return point.net_tokens


def _baseline_points(judge: PointBuilder, baselines: Baselines, marked: Point) -> list[Point]:
    """The five of them; the budget and the random cue cost what the marked policy costs."""
    rows = [
        baselines.full_thinking(),
        baselines.no_thinking(),
        *judge.equal_cost_baselines(marked.net_tokens),
        baselines.oracle(),
    ]
    return [judge.baseline_point(one) for one in rows]


def _require_coverage(point: Point) -> None:
    """A policy that asks for what was not recorded would be judged by its failures."""
    probes = sum(o.probe_count for o in point.outcomes)
    missing = sum(o.missing_probes for o in point.outcomes)
    if missing > _MAX_MISSING_SHARE * probes or point.inexact_share > _MAX_INEXACT_SHARE:
        raise BadPolicy(
            f"{point.name}: of {probes} probes {missing} were not recorded, and "
            f"{100 * point.inexact_share:.0f} % not where it looks: "
            f"record with --for '{point.name}'"
        )


def _best_setting_note(marked: Point | None, tolerance: float) -> str:
    allowed = f"at most {100 * tolerance:g} points lost, at 95 % confidence"
    if marked is None:
        return f"No setting is shown to keep what was asked for: {allowed}."
    return (
        f"The best setting: {marked.name} ({allowed}), {100 * (1 - marked.crt.value):.1f} % fewer "
        "tokens, net. It was chosen on these traces: replay it on others before you believe it."
    )


def _points_to_show(points: Sequence[Point], marked: Point | None) -> list[Point]:
    """All, or of a large sweep the baselines and the front."""
    if len(points) <= _MAX_TABLE_ROWS:
        return list(points)
    kept = {id(point) for point in (*pareto_front(points), marked)}
    return [point for point in points if point.is_baseline or id(point) in kept]


def _write_files(
    out: Path,
    tapes: ReplayDataset,
    points: Sequence[Point],
    baselines: Baselines,
    marked: Point | None,
    said: Sequence[str],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    plot(points, baselines, marked, out / "pareto.png")
    (out / "explore.html").write_text(render_page(tapes, points, baselines, marked, said), "utf-8")
    numbers = {"notes": list(said), "points": [_point_to_json(point) for point in points]}
    (out / "points.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")


def _point_to_json(point: Point) -> dict[str, Any]:
    names = [name for name in Point.__dataclass_fields__ if name not in ("per_trace", "outcomes")]
    values = {name: getattr(point, name) for name in names}
    return {key: asdict(v) if isinstance(v, Estimate) else v for key, v in values.items()}
