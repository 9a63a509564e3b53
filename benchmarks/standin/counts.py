"""Counts of requests: how many started, and how each ended."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

__all__ = ["RequestCounts"]

_KEYS = (
    *("started", "finished", "aborted", "broken"),
    *("chats", "continuations", "probes", "poolings"),
)


class RequestCounts:
    """Counts of the requests that generate or pool; `GET /standin/stats` returns them.

    For each such request the engine calls `record_start` once. The reply then calls exactly one of
    `record_finish`, `record_break` and `record_abort`; `active` is the number still open.
    """

    def __init__(self) -> None:
        self.by_kind: Counter[str] = Counter()
        self.active = 0
        self.last_abort: tuple[float, str, int] | None = None  # (monotonic time, phase, chunks)

    def record_start(self, kind: str) -> None:
        """Count a new request of this kind: "chats", "probes" or "poolings"."""
        self.by_kind["started"] += 1
        self.by_kind[kind] += 1
        self.active += 1

    def record_finish(self) -> None:
        """Count a complete reply."""
        self.by_kind["finished"] += 1
        self.active -= 1

    def record_break(self) -> None:
        """Count a connection that the stand-in dropped as its scenario asked."""
        self.by_kind["broken"] += 1
        self.active -= 1

    def record_abort(self, phase: str, chunks: int) -> None:
        """Count a client that disconnected in this phase, after this many chunks."""
        self.by_kind["aborted"] += 1
        self.active -= 1
        self.last_abort = (time.monotonic(), phase, chunks)

    def stats(self) -> dict[str, Any]:
        """The body of `GET /standin/stats`."""
        last = None
        if self.last_abort is not None:
            when, phase, chunks = self.last_abort
            ago = time.monotonic() - when
            last = {"seconds_ago": round(ago, 4), "phase": phase, "chunks": chunks}
        return {k: self.by_kind[k] for k in _KEYS} | {"active": self.active, "last_abort": last}

    def clear(self) -> None:
        """Set every count but `active` to zero, and forget the last abort."""
        self.by_kind.clear()
        self.last_abort = None
