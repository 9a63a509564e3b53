"""How far the engine's current stream has come towards the end of the response."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Progress"]


@dataclass(slots=True)
class Progress:
    """How far the current stream is, and how it ended.

    state        content                                                    changed by
    -----------  ---------------------------------------------------------  -------------------
    saw_finish   the stream sent a finish reason or an error                Relay, AnswerStream
    saw_done     the stream sent ``[DONE]``                                 EventReader
    failure      why reading stopped early: "timeout", "broken"; else None  Relay, AnswerStream
    """

    saw_finish: bool = False
    saw_done: bool = False
    failure: str | None = None

    def reset(self) -> None:
        """Another stream replaces the current one."""
        self.saw_finish = self.saw_done = False
        self.failure = None

    @property
    def problem(self) -> str | None:
        """Why the response is not whole: ``failure``, or "truncated" without a finish reason."""
        return self.failure or (None if self.saw_finish else "truncated")
