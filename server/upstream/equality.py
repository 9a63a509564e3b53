"""Compares answers algebraically, in a helper process, since that may block for seconds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process

from adjourn.policies.evidence.answers import AnswerClasses
from adjourn.policies.evidence.mathematics import math_verify_installed, may_be_math_equal

__all__ = ["EqualityChecker"]

_START_TIMEOUT = 30.0
_CHECK_TIMEOUT = 5.0


class EqualityChecker:
    """Finds the class of an answer among the answers before it. One for the whole gateway.

    Two answers whose equality needs algebra count as different if the library ``math-verify`` is
    not installed, or if the comparison fails or takes too long.

    State: ``_process``, the helper process, is started when it is first needed, and again after it
    was killed. ``_lock``: it compares one pair at a time.
    """

    def __init__(self) -> None:
        self._process: Process | None = None
        self._lock = asyncio.Lock()

    async def label_answer(self, classes: AnswerClasses, answer: str) -> int:
        """Add ``answer`` to ``classes`` and return the number of its class."""
        if (known := classes.find(answer)) is not None:
            return known
        for number, other in enumerate(classes.representatives):
            if may_be_math_equal(answer, other) and await self._are_equal(other, answer):
                return classes.add(answer, number)
        return classes.add(answer)

    async def _are_equal(self, one: str, other: str) -> bool:
        if not math_verify_installed():
            return False
        async with self._lock:
            answered = False
            try:
                process = self._process or await self._start()
                async with asyncio.timeout(_CHECK_TIMEOUT):
                    line = await _query_process(process, json.dumps([one, other]).encode())
                answered = line in (b"true", b"false")
                return line == b"true"
            except (TimeoutError, OSError):
                return False
            finally:
                if not answered:
                    # A late reply would be read as the reply to the next comparison.
                    await self.aclose()

    async def _start(self) -> Process:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "adjourn.policies.evidence.mathematics",
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
        )
        async with asyncio.timeout(_START_TIMEOUT):
            await _read_line(process)
        return process

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _query_process(process: Process, question: bytes) -> bytes:
    assert process.stdin is not None
    process.stdin.write(question + b"\n")
    await process.stdin.drain()
    return await _read_line(process)


async def _read_line(process: Process) -> bytes:
    assert process.stdout is not None
    return (await process.stdout.readline()).strip()
