"""The comparison table, and the notes on how its numbers were computed."""

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
    "policy", "correct, %", "± full, points", "CR", "CRT", "net", "probes", "stopped",
    "stopped at", "± budget", "± random cue",
)  # fmt: skip


def comparison_table(points: Sequence[Point], best_point: Point | None) -> RenderableType:
    """One row for each point; ``best_point`` is marked."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(_COLUMNS[0], overflow="fold", min_width=32)
    for name in _COLUMNS[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for point in points:
        style = "bold green" if point is best_point else "dim" if point.is_baseline else ""
        table.add_row(*_row_cells(point), style=style)
    caption = (
        "In brackets: 95 % intervals by a paired bootstrap over prompts. CR, CRT: net tokens "
        "divided by those of full thinking, without and with probes. stopped at: median share of "
        "the trace before the cut. ± budget, ± random cue: points gained over baselines with the "
        "same mean net tokens."
    )
    return Group(table, Text(caption, style="dim"))


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
    """How the numbers were computed, one sentence or two in each line."""
    prompts = len({trace.prompt_id for trace in dataset.traces})
    gold = sum(trace.gold is not None for trace in dataset.traces)
    lines = [
        f"{len(dataset.traces)} traces of {prompts} prompts, {dataset.header.model}; "
        f"{dataset.truncated_count} truncated traces left out.",
        "The answer after a cut is assumed to be the trial answer recorded there or last before it"
        + (
            f". Executed cuts gave that answer in {_format_agreement(dataset)} cases, "
            f"the latter where its confidence was at least {_HIGH_CONFIDENCE}."
            if agreement(dataset)[1]
            else "."
        ),
        "Probes return at once." if instant else "Probes take the time that was recorded.",
    ]
    if gold < len(dataset.traces):
        lines.append(
            f"{len(dataset.traces) - gold} traces have no gold answer: "
            "correct means equal to their own answer."
        )
    if any(point.inexact_share for point in points):
        worst = max(points, key=lambda point: point.inexact_share)
        lines.append(
            f"Up to {100 * worst.inexact_share:.1f} % of a policy's probes ({worst.name}) got a "
            "result that was recorded a few tokens earlier."
        )
    return lines


def agreement(dataset: ReplayDataset, min_confidence: float = 0.0) -> tuple[int, int]:
    """How many of the executed cuts gave the trial answer that was recorded at the same place, and
    the number of these cuts. Counts only cuts whose trial answer has at least
    ``min_confidence``."""
    pairs = [
        (cut, trace.trial_answer_at(cut.position))
        for trace in dataset.traces
        for cut in trace.executed_cuts
        if cut.finish_reason == "stop"
    ]
    pairs = [(cut, trial) for cut, trial in pairs if trial.confidence >= min_confidence]
    agreed = sum(math_equal(extract_final_answer(cut.answer), trial.answer) for cut, trial in pairs)
    return agreed, len(pairs)


def _format_agreement(dataset: ReplayDataset) -> str:
    return " and ".join(
        f"{agreed} of {total} ({100 * agreed / max(total, 1):.1f} %)"
        for agreed, total in (agreement(dataset), agreement(dataset, _HIGH_CONFIDENCE))
    )
