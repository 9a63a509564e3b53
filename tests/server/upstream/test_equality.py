"""Equality by algebra, asked of a process beside the event loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from adjourn.policies.evidence.answers import AnswerClasses
from adjourn.server.upstream import equality
from adjourn.server.upstream.equality import EqualityChecker


def labelled(*answers: str) -> list[int]:
    async def label() -> list[int]:
        judge, classes = EqualityChecker(), AnswerClasses()
        try:
            return [await judge.label_answer(classes, answer) for answer in answers]
        finally:
            await judge.aclose()

    return asyncio.run(label())


def test_equal_answers_share_a_label() -> None:
    """By algebra where that is needed, and by the number of the first of their kind."""
    assert labelled("\\sqrt{8}", "3", "2\\sqrt{2}", "3.0", "\\sqrt{9}") == [0, 1, 0, 1, 1]


def test_nothing_is_started_for_plain_answers() -> None:
    """Numbers and words need no process."""

    async def label() -> bool:
        judge, classes = EqualityChecker(), AnswerClasses()
        for answer in ("1", "2", "Paris", "1.0"):
            await judge.label_answer(classes, answer)
        return judge._process is None

    assert asyncio.run(label())


def test_one_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are then taken for different, and the next question finds another process."""
    monkeypatch.setattr(equality, "_START_TIMEOUT", 0.01)

    async def label() -> tuple[list[int], bool]:
        judge, classes = EqualityChecker(), AnswerClasses()
        labels = [await judge.label_answer(classes, a) for a in ("\\sqrt{8}", "2\\sqrt{2}")]
        return labels, judge._process is None

    began = time.monotonic()
    assert asyncio.run(label()) == ([0, 1], True)
    assert time.monotonic() - began < 2.0
