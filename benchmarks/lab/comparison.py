"""Compare policies over one recording: print a table, write a plot, a page and the numbers."""

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
"""Share of a policy's probes that may have no recorded result."""
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
    """Replay all policies of the ``specifications``, print a table and write the files in ``out``.

    ``tolerance``: the accuracy that the best setting may lose, in [0, 1]. Raises BadTraces and
    BadPolicy.
    """
    console = console or _console()
    names = list(dict.fromkeys(name for line in specifications for name in expand(line)))
    for name in names:
        if isinstance(policy := parse_policy(name), SamplingPolicy):
            raise BadPolicy(
                f"{name}: a policy over several traces, but traces are replayed one by one"
            )
        require_replayable(policy)
    dataset = ReplayDataset(traces)
    for name in names:
        if (reason := _missing_data_reason(name, parse_policy(name).needs, dataset)) is not None:
            raise BadPolicy(f"{name}: {reason}")
    baselines = Baselines(dataset, instant=instant)
    builder = PointBuilder([trace.prompt_id for trace in dataset.traces], baselines)
    started_at = time.perf_counter()
    outcomes_by_policy = sweep(names, dataset, instant=instant, workers=workers)
    points = [
        builder.policy_point(name, outcomes)
        for name, outcomes in zip(
            names, track(outcomes_by_policy, "replaying", len(names), console=console), strict=True
        )
    ]
    rate = len(names) * len(dataset.traces) / (time.perf_counter() - started_at)
    for point in points:
        _require_coverage(point)
    best_point = select_best(points, tolerance)
    points = _baseline_points(builder, baselines, best_point or points[0]) + sorted(
        points, key=_net_tokens
    )
    note_lines = [
        *notes(dataset, points, instant=instant),
        _best_setting_note(best_point, tolerance),
    ]
    console.print(comparison_table(_points_to_show(points, best_point), best_point))
    console.print("\n".join(note_lines), markup=False, highlight=False)
    _write_files(out, dataset, points, baselines, best_point, note_lines)
    console.print(
        f"{rate:.0f} traces per second; results are in {out}/", markup=False, highlight=False
    )
    return points


def _missing_data_reason(name: str, needs: Needs, dataset: ReplayDataset) -> str | None:
    """Why the recording cannot replay a policy with these needs; None if it can."""
    if needs.logprobs > dataset.logprob_count:
        return f"log-probabilities were not recorded: record with --for '{name}'"
    if needs.embeddings and not dataset.has_embeddings:
        return f"steps were not embedded: record with --for '{name}' --embeddings-url URL"
    if others := needs.models - {dataset.header.model}:
        return f"trained on {', '.join(others)}, but the recording is of {dataset.header.model}"
    if lacking := sorted(needs.hidden_states - dataset.hidden_state_layers):
        layers = ", ".join(f"{number} (width {width})" for number, width in lacking)
        return f"hidden states after layer {layers} were not recorded: record with --for lynx"
    return None


def _console() -> Console:
    """If the output is not a terminal, as wide as the table."""
    console = Console()
    return console if console.is_terminal else Console(width=_CONSOLE_WIDTH)


def _net_tokens(point: Point) -> float:
    return point.net_tokens


def _baseline_points(builder: PointBuilder, baselines: Baselines, best_point: Point) -> list[Point]:
    """All five; the budget and the random cue have the mean net tokens of ``best_point``."""
    scores = [
        baselines.full_thinking(),
        baselines.no_thinking(),
        *builder.equal_cost_baselines(best_point.net_tokens),
        baselines.oracle(),
    ]
    return [builder.baseline_point(one) for one in scores]


def _require_coverage(point: Point) -> None:
    """Raises BadPolicy if too many results were not recorded: the replay would measure failures of
    probes, not the policy."""
    probes = sum(o.probe_count for o in point.outcomes)
    missing = sum(o.missing_probes for o in point.outcomes)
    if missing > _MAX_MISSING_SHARE * probes or point.inexact_share > _MAX_INEXACT_SHARE:
        raise BadPolicy(
            f"{point.name}: of {probes} probes {missing} were not recorded, and "
            f"{100 * point.inexact_share:.0f} % not at its checkpoints: "
            f"record with --for '{point.name}'"
        )


def _best_setting_note(best_point: Point | None, tolerance: float) -> str:
    condition = f"at most {100 * tolerance:g} points lost, at 95 % confidence"
    if best_point is None:
        return f"No setting is shown to meet the tolerance: {condition}."
    return (
        f"The best setting: {best_point.name} ({condition}), "
        f"{100 * (1 - best_point.crt.value):.1f} % fewer net tokens. "
        "It was selected on these traces: replay it on others before you rely on it."
    )


def _points_to_show(points: Sequence[Point], best_point: Point | None) -> list[Point]:
    """All points; of a large sweep only the baselines, the front and the best."""
    if len(points) <= _MAX_TABLE_ROWS:
        return list(points)
    shown = {id(point) for point in (*pareto_front(points), best_point)}
    return [point for point in points if point.is_baseline or id(point) in shown]


def _write_files(
    out: Path,
    dataset: ReplayDataset,
    points: Sequence[Point],
    baselines: Baselines,
    best_point: Point | None,
    note_lines: Sequence[str],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    plot(points, baselines, best_point, out / "pareto.png")
    (out / "explore.html").write_text(
        render_page(dataset, points, baselines, best_point, note_lines), "utf-8"
    )
    numbers = {"notes": list(note_lines), "points": [_point_to_json(point) for point in points]}
    (out / "points.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")


def _point_to_json(point: Point) -> dict[str, Any]:
    names = [name for name in Point.__dataclass_fields__ if name not in ("per_trace", "outcomes")]
    values = {name: getattr(point, name) for name in names}
    return {key: asdict(v) if isinstance(v, Estimate) else v for key, v in values.items()}
