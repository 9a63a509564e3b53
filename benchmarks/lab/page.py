"""The page to explore a comparison: one self-contained file, made of ``page.html`` and data.

Text from users and models is data: the page contains it as JSON without any ``<``, and its script
inserts it as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from adjourn.lab.baselines import Baselines
from adjourn.lab.intervals import Estimate
from adjourn.lab.plot import COLOURS, policy_family
from adjourn.lab.points import Point, pareto_front
from adjourn.lab.replay import Outcome
from adjourn.lab.replay_trace import ReplayDataset, ReplayTrace

__all__ = ["render_page"]

_MAX_WRONG_TRACES = 200
"""Shown for each point."""
_CHARS_BEFORE_CUT, _CHARS_AFTER_CUT = 900, 500
"""Characters of a trace that are shown before and after the cut."""


def render_page(
    dataset: ReplayDataset,
    points: Sequence[Point],
    baselines: Baselines,
    best_point: Point | None,
    notes: Sequence[str],
) -> str:
    """The HTML of the page; ``best_point`` is marked."""
    front = {id(point) for point in pareto_front(points)}
    families = list(dict.fromkeys(policy_family(p.name) for p in points if not p.is_baseline))
    data = {
        "title": dataset.header.model,
        "notes": list(notes),
        "families": {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(families)},
        "points": [
            _point_to_json(p, dataset.traces) | {"front": id(p) in front, "best": p is best_point}
            for p in points
        ],
        "budget": _budget_curve(baselines, points),
    }
    template = files("adjourn.lab").joinpath("page.html").read_text("utf-8")
    # With every "<" escaped, no text can close the element that contains the data.
    data_json = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    return template.replace("{{data}}", data_json)


def _budget_curve(baselines: Baselines, points: Sequence[Point]) -> list[list[float]]:
    """[mean net tokens, accuracy] of budgets up to the longest trace."""
    longest = float(max(point.per_trace.position.max() for point in points))
    scores = [baselines.budget(longest * step / 40) for step in range(41)]
    return [[round(float(s.net_tokens.mean()), 2), float(s.correct.mean())] for s in scores]


def _point_to_json(point: Point, traces: Sequence[ReplayTrace]) -> dict[str, Any]:
    wrong = [
        _wrong_trace_to_json(trace, outcome)
        for trace, outcome in zip(traces, point.outcomes, strict=False)
        if not outcome.correct
    ]
    # First the traces that full thinking answers correctly.
    wrong.sort(key=lambda one: not one["broken_by_cut"])
    return {
        "name": point.name,
        "family": None if point.is_baseline else policy_family(point.name),
        "accuracy": _estimate_to_json(point.accuracy),
        "difference": _estimate_to_json(point.difference),
        "cr": point.cr,
        "crt": _estimate_to_json(point.crt),
        "net": point.net_tokens,
        "probes": point.probes_per_trace,
        "stopped": point.stopped_share,
        "stopped_at": point.stop_fraction,
        "budget": _estimate_to_json(point.gain_over_budget),
        "random": _estimate_to_json(point.gain_over_random_cue),
        "wrong": wrong[:_MAX_WRONG_TRACES],
        "omitted": max(len(wrong) - _MAX_WRONG_TRACES, 0),
    }


def _estimate_to_json(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [estimate.value, estimate.low, estimate.high]


def _wrong_trace_to_json(trace: ReplayTrace, outcome: Outcome) -> dict[str, Any]:
    before, after = _split_text_at(trace, outcome.kept_tokens)
    return {
        "trace": f"{trace.prompt_id} / {trace.sample}",
        "prompt": "\n".join(_message_text(message) for message in trace.messages),
        "gold": trace.gold,
        "answer": outcome.answer,
        "full_answer": trace.answer,
        "broken_by_cut": trace.is_correct(trace.answer),
        "why": _explain_wrong(trace, outcome),
        "before": before[-_CHARS_BEFORE_CUT:],
        "after": after[:_CHARS_AFTER_CUT],
    }


def _message_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content)


def _split_text_at(trace: ReplayTrace, position: int) -> tuple[str, str]:
    """The trace's text before and after ``position`` tokens."""
    before, after = list[str](), list[str]()
    seen = -trace.opening_tokens
    for text, ids, *_ in trace.feed_arguments:
        seen += len(ids)
        (before if seen <= position else after).append(text)
    return "".join(before), "".join(after)


def _explain_wrong(trace: ReplayTrace, outcome: Outcome) -> str:
    """A sentence on why the answer is wrong."""
    if not outcome.stopped:
        return "Not cut: the model reached this answer by itself."
    cut = f"Cut after {outcome.kept_tokens} of {outcome.full_tokens} tokens ({outcome.reason}"
    if outcome.confidence is not None:
        cut += f", confidence {outcome.confidence:.4f}"
    cut += "). "
    if not trace.is_correct(trace.answer):
        return cut + "Full thinking is wrong as well."
    settled = trace.settled_position()
    if settled is None:
        return cut + "Full thinking is correct, but its last trial answer was not."
    missing = max(settled - outcome.kept_tokens, 0)
    return cut + f"Too early: {missing} tokens later the trial answer was correct and stayed so."
