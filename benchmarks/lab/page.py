"""The page to explore: one file that needs nothing else, made from ``page.html`` and data.

All that came from a user or a model is data: it goes into the page as JSON in which no ``<`` is
left, and the page's script writes it as text and never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from benchmarks.lab.baselines import Baselines
from benchmarks.lab.intervals import Estimate
from benchmarks.lab.plot import COLOURS, family
from benchmarks.lab.points import Point, front
from benchmarks.lab.replay import Outcome
from benchmarks.lab.tape import Tape, Tapes

__all__ = ["page"]

_SHOWN = 200
"""Traces a point: more than anybody reads."""
_BEFORE, _BEHIND = 900, 500
"""Characters shown of a trace before and behind the cut."""


def page(
    tapes: Tapes,
    points: Sequence[Point],
    baselines: Baselines,
    marked: Point | None,
    notes: Sequence[str],
) -> str:
    """The page's source."""
    kept = {id(point) for point in front(points)}
    families = list(dict.fromkeys(family(p.name) for p in points if not p.baseline))
    data = {
        "title": tapes.recording.model,
        "notes": list(notes),
        "families": {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(families)},
        "points": [
            _point(p, tapes.tapes) | {"front": id(p) in kept, "best": p is marked} for p in points
        ],
        "budget": _curve(baselines, points),
    }
    template = files("benchmarks.lab").joinpath("page.html").read_text("utf-8")
    # With every "<" written as an escape, nothing can end the element that holds the data.
    written = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    return template.replace("{{data}}", written)


def _curve(baselines: Baselines, points: Sequence[Point]) -> list[list[float]]:
    top = float(max(point.rows.position.max() for point in points))
    rows = [baselines.budget(top * step / 40) for step in range(41)]
    return [[round(float(r.net.mean()), 2), float(r.right.mean())] for r in rows]


def _point(point: Point, tapes: Sequence[Tape]) -> dict[str, Any]:
    wrong = [
        _wrong(tape, outcome)
        for tape, outcome in zip(tapes, point.outcomes, strict=False)
        if not outcome.right
    ]
    # What the cut spoilt before what was wrong anyway.
    wrong.sort(key=lambda one: not one["spoilt"])
    return {
        "name": point.name,
        "family": None if point.baseline else family(point.name),
        "accuracy": _estimate(point.accuracy),
        "difference": _estimate(point.difference),
        "cr": point.cr,
        "crt": _estimate(point.crt),
        "net": point.net,
        "probes": point.probes,
        "stopped": point.stopped,
        "place": point.place,
        "budget": _estimate(point.budget),
        "random": _estimate(point.random),
        "wrong": wrong[:_SHOWN],
        "more": max(len(wrong) - _SHOWN, 0),
    }


def _estimate(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [estimate.value, estimate.low, estimate.high]


def _wrong(tape: Tape, outcome: Outcome) -> dict[str, Any]:
    before, behind = _texts(tape, outcome.position)
    return {
        "trace": f"{tape.prompt} / {tape.sample}",
        "prompt": "\n".join(_said(message) for message in tape.messages),
        "gold": tape.gold,
        "answer": outcome.answer,
        "whole": tape.answer,
        "spoilt": tape.right(tape.answer),
        "why": _why(tape, outcome),
        "before": before[-_BEFORE:],
        "behind": behind[:_BEHIND],
    }


def _said(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content)


def _texts(tape: Tape, position: int) -> tuple[str, str]:
    """The trace's text up to ``position`` tokens, and what followed."""
    before, behind = list[str](), list[str]()
    seen = -tape.opening
    for text, ids, *_ in tape.feeds:
        seen += len(ids)
        (before if seen <= position else behind).append(text)
    return "".join(before), "".join(behind)


def _why(tape: Tape, outcome: Outcome) -> str:
    """In words, what went wrong here."""
    if not outcome.stopped:
        return "It was not cut: the model itself came to this answer."
    cut = f"Cut after {outcome.position} of {outcome.of} tokens ({outcome.reason}"
    if outcome.confidence is not None:
        cut += f", confidence {outcome.confidence:.4f}"
    cut += "). "
    if not tape.right(tape.answer):
        return cut + "With full thinking it is wrong as well."
    settled = tape.settled()
    if settled is None:
        return cut + "With full thinking it is right, though its last trial answer was not."
    left = max(settled - outcome.position, 0)
    return cut + f"Too early: {left} tokens later the trial answer was right, and stayed so."
