"""The table, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adjourn.lab.intervals import Estimate
from adjourn.lab.points import Point
from adjourn.lab.replay_trace import ReplayDataset
from adjourn.policies.evidence.answers import extract_final_answer
from adjourn.policies.evidence.mathematics import math_equal

__all__ = ["agreement", "comparison_table", "notes"]

_HIGH_CONFIDENCE = 0.95
_COLUMNS = (
    "policy", "right, %", "± full, points", "CR", "CRT", "net", "probes", "stopped", "place",
    "± budget", "± random cue",
)  # fmt: skip


def comparison_table(points: Sequence[Point], best_point: Point | None) -> RenderableType:
    """A row a point; ``marked`` is the best setting."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    made.add_column(_COLUMNS[0], overflow="fold", min_width=32)
    for name in _COLUMNS[1:]:
        made.add_column(name, justify="right", overflow="fold")
    for point in points:
        style = "bold green" if point is best_point else "dim" if point.is_baseline else ""
        made.add_row(*_row_cells(point), style=style)
    caption = (
        "In brackets: 95 % intervals by a paired bootstrap over prompts. CR, CRT: net tokens over "
        "full thinking's, without and with probes. place: median share of the trace that was kept. "
        "± budget, ± random cue: points gained over rivals of the same mean net tokens."
    )
    return Group(made, Text(caption, style="dim"))


def _row_cells(point: Point) -> tuple[str, ...]:
    return (
        escape(point.name),
        _format_share(point.accuracy),
        "" if point.name == "full thinking" else _format_gain(point.difference),
        f"{point.cr:.3f}",
        f"{point.crt.value:.3f} ({point.crt.low:.3f} to {point.crt.high:.3f})",
        f"{point.net_tokens:.0f}",
        f"{point.probes_per_trace:.1f}" if point.outcomes else "",
        f"{100 * point.stopped_share:.0f} %",
        "" if point.stop_fraction is None else f"{100 * point.stop_fraction:.0f} %",
        _format_gain(point.gain_over_budget),
        _format_gain(point.gain_over_random_cue),
    )


def _format_share(share: Estimate) -> str:
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _format_gain(gain: Estimate | None) -> str:
    if gain is None:
        return ""
    return f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def notes(dataset: ReplayDataset, points: Sequence[Point], *, instant: bool) -> list[str]:
    """What a reader must know of these numbers."""
    prompts = len({tape.prompt_id for tape in dataset.traces})
    gold = sum(tape.gold is not None for tape in dataset.traces)
    said = [
        f"{len(dataset.traces)} traces of {prompts} prompts, {dataset.header.model}; "
        f"{dataset.truncated_count} truncated ones left out.",
        "An answer behind a cut is taken to be the trial answer recorded there or last before it"
        + (
            f". Served for real it was so {_format_agreement(dataset)} times, "
            "the latter where it was at least "
            f"{_HIGH_CONFIDENCE} sure."
            if agreement(dataset)[1]
            else "."
        ),
        "Probes come at once." if instant else "Probes come as late as they came when recorded.",
    ]
    if gold < len(dataset.traces):
        said.append(
            f"{len(dataset.traces) - gold} traces have no gold answer: "
            "right means equal to their own."
        )
    if any(point.inexact_share for point in points):
        worst = max(points, key=lambda point: point.inexact_share)
        said.append(
            f"Up to {100 * worst.inexact_share:.1f} % of a policy's probes "
            f"({worst.name}) were answered "
            "from a place a few tokens before."
        )
    return said


def agreement(dataset: ReplayDataset, min_confidence: float = 0.0) -> tuple[int, int]:
    """How many of the cuts that were carried out for real were answered with the trial answer
    recorded at the same place, of how many; only where that had at least this confidence."""
    pairs = [
        (served, tape.trial_answer_at(served.position))
        for tape in dataset.traces
        for served in tape.executed_cuts
        if served.finish_reason == "stop"
    ]
    pairs = [(served, trial) for served, trial in pairs if trial.confidence >= min_confidence]
    agreed = sum(
        math_equal(extract_final_answer(served.answer), trial.answer) for served, trial in pairs
    )
    return agreed, len(pairs)


def _format_agreement(tapes: ReplayDataset) -> str:
    return " and ".join(
        f"{agreed} of {tried} ({100 * agreed / max(tried, 1):.1f} %)"
        for agreed, tried in (agreement(tapes), agreement(tapes, _HIGH_CONFIDENCE))
    )
