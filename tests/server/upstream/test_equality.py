"""Algebraic equality of answers, compared in a helper process."""

from __future__ import annotations

import asyncio
import time

import pytest

from adjourn.policies.evidence.answers import AnswerClasses
from adjourn.server.upstream import equality
from adjourn.server.upstream.equality import EqualityChecker


def label(*answers: str) -> list[int]:
    """The class number of each answer, in this order."""

    async def run() -> list[int]:
        checker, classes = EqualityChecker(), AnswerClasses()
        try:
            return [await checker.label_answer(classes, answer) for answer in answers]
        finally:
            await checker.aclose()

    return asyncio.run(run())


def test_equal_answers_share_a_label() -> None:
    """The classes are numbered in the order of their first answers."""
    assert label("\\sqrt{8}", "3", "2\\sqrt{2}", "3.0", "\\sqrt{9}") == [0, 1, 0, 1, 1]


def test_no_process_is_started_for_plain_answers() -> None:
    """Numbers and words are compared without algebra."""

    async def run() -> bool:
        checker, classes = EqualityChecker(), AnswerClasses()
        for answer in ("1", "2", "Paris", "1.0"):
            await checker.label_answer(classes, answer)
        return checker._process is None

    assert asyncio.run(run())


def test_a_process_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers count as different, and the next comparison starts a new process."""
    monkeypatch.setattr(equality, "_START_TIMEOUT", 0.01)

    async def run() -> tuple[list[int], bool]:
        checker, classes = EqualityChecker(), AnswerClasses()
        labels = [await checker.label_answer(classes, a) for a in ("\\sqrt{8}", "2\\sqrt{2}")]
        return labels, checker._process is None

    began = time.monotonic()
    assert asyncio.run(run()) == ([0, 1], True)
    assert time.monotonic() - began < 2.0
