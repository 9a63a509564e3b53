"""The page to explore: one file that needs nothing else, made from ``page.html`` and data.

All that came from a user or a model is data: it goes into the page as JSON in which no ``<`` is
left, and the page's script writes it as text and never as markup.
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
"""Traces a point: more than anybody reads."""
_CHARS_BEFORE_CUT, _CHARS_AFTER_CUT = 900, 500
"""Characters shown of a trace before and behind the cut."""


def render_page(
    dataset: ReplayDataset,
    points: Sequence[Point],
    baselines: Baselines,
    best_point: Point | None,
    notes: Sequence[str],
) -> str:
    """The page's source."""
    kept = {id(point) for point in pareto_front(points)}
    families = list(dict.fromkeys(policy_family(p.name) for p in points if not p.is_baseline))
    data = {
        "title": dataset.header.model,
        "notes": list(notes),
        "families": {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(families)},
        "points": [
            _point_to_json(p, dataset.traces) | {"front": id(p) in kept, "best": p is best_point}
            for p in points
        ],
        "budget": _budget_curve(baselines, points),
    }
    template = files("adjourn.lab").joinpath("page.html").read_text("utf-8")
    # With every "<" written as an escape, nothing can end the element that holds the data.
    written = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    return template.replace("{{data}}", written)


def _budget_curve(baselines: Baselines, points: Sequence[Point]) -> list[list[float]]:
    top = float(max(point.per_trace.position.max() for point in points))
    rows = [baselines.budget(top * step / 40) for step in range(41)]
    return [[round(float(r.net_tokens.mean()), 2), float(r.correct.mean())] for r in rows]


def _point_to_json(point: Point, tapes: Sequence[ReplayTrace]) -> dict[str, Any]:
    wrong = [
        _wrong_trace_to_json(tape, outcome)
        for tape, outcome in zip(tapes, point.outcomes, strict=False)
        if not outcome.correct
    ]
    # What the cut spoilt before what was wrong anyway.
    wrong.sort(key=lambda one: not one["spoilt"])
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
        "place": point.stop_fraction,
        "budget": _estimate_to_json(point.gain_over_budget),
        "random": _estimate_to_json(point.gain_over_random_cue),
        "wrong": wrong[:_MAX_WRONG_TRACES],
        "more": max(len(wrong) - _MAX_WRONG_TRACES, 0),
    }


def _estimate_to_json(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [estimate.value, estimate.low, estimate.high]


def _wrong_trace_to_json(tape: ReplayTrace, outcome: Outcome) -> dict[str, Any]:
    before, behind = _split_text_at(tape, outcome.kept_tokens)
    return {
        "trace": f"{tape.prompt_id} / {tape.sample}",
        "prompt": "\n".join(_message_text(message) for message in tape.messages),
        "gold": tape.gold,
        "answer": outcome.answer,
        "whole": tape.answer,
        "spoilt": tape.is_correct(tape.answer),
        "why": _explain_wrong(tape, outcome),
        "before": before[-_CHARS_BEFORE_CUT:],
        "behind": behind[:_CHARS_AFTER_CUT],
    }


def _message_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content)


def _split_text_at(tape: ReplayTrace, position: int) -> tuple[str, str]:
    """The trace's text up to ``position`` tokens, and what followed."""
    before, behind = list[str](), list[str]()
    seen = -tape.opening_tokens
    for text, ids, *_ in tape.feed_arguments:
        seen += len(ids)
        (before if seen <= position else behind).append(text)
    return "".join(before), "".join(behind)


def _explain_wrong(tape: ReplayTrace, outcome: Outcome) -> str:
    """In words, what went wrong here."""
    if not outcome.stopped:
        return "It was not cut: the model itself came to this answer."
    cut = f"Cut after {outcome.kept_tokens} of {outcome.full_tokens} tokens ({outcome.reason}"
    if outcome.confidence is not None:
        cut += f", confidence {outcome.confidence:.4f}"
    cut += "). "
    if not tape.is_correct(tape.answer):
        return cut + "With full thinking it is wrong as well."
    settled = tape.settled_position()
    if settled is None:
        return cut + "With full thinking it is right, though its last trial answer was not."
    left = max(settled - outcome.kept_tokens, 0)
    return cut + f"Too early: {left} tokens later the trial answer was right, and stayed so."
