"""``loop``: stop a trace that repeats itself token for token.

Rule: stop if the trace ends in at least ``repeats`` copies of one cycle of at most ``max_cycle``
tokens, together at least ``min_tokens`` long.
Units: tokens of the trace.
Source: the most frequent complaint of users, reasoning that repeats itself up to the token limit
(vllm#52677).
Cost: none; constant work a token. A cycle is suspected only after eight of its tokens recur, so a
stop comes up to one cycle and eight tokens late.
Patience: none to scale. Repeating itself helps the model at no effort.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adjourn.policies.events import Command, Event, ReasoningChunk, Stop
from adjourn.policies.policy import Needs

__all__ = ["Loop"]

_CONTEXT_TOKENS = 8
"""Tokens in a row that must recur before a cycle is suspected."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Options of ``loop``. ``min_tokens`` lets a row of dashes or zeros pass."""

    name: ClassVar[str] = "loop"
    repeats: int = 4
    max_cycle: int = 512
    min_tokens: int = 64

    def __post_init__(self) -> None:
        if self.repeats < 2 or self.max_cycle < 1 or self.min_tokens < 0:
            raise ValueError("repeats must be at least 2, max_cycle 1, min_tokens 0")

    @property
    def needs(self) -> Needs:
        return Needs(reasoning_chunks=True)

    def start(self) -> LoopStopper:
        return LoopStopper(self)


class LoopStopper:
    """One trace. Follows one suspected cycle at a time.

    A token that equals the one a cycle earlier lengthens the match; a different token drops the
    cycle. The next cycle reaches back to an earlier place where the last eight tokens occurred: of
    several, the one with the longest match before it, since the nearest one may be a shorter cycle
    within the true one.

    State, changed by ``observe`` only:

    _tokens        all tokens of the trace
    _context_ends  for each run of eight tokens, where it ended within the last ``max_cycle`` tokens
    _cycle_length  of the suspected cycle; 0 if there is none
    _match_length  tokens that equal the ones a cycle earlier
    """

    __slots__ = ("_context_ends", "_cycle_length", "_match_length", "_policy", "_tokens")

    def __init__(self, policy: Loop) -> None:
        self._policy = policy
        self._tokens: list[int] = []
        self._context_ends: dict[tuple[int, ...], list[int]] = {}
        self._cycle_length = 0
        self._match_length = 0

    def observe(self, event: Event) -> Command | None:
        if isinstance(event, ReasoningChunk):
            for token in event.token_ids:
                if self._add_token(token):
                    return Stop("loop")
        return None

    def _add_token(self, token: int) -> bool:
        tokens, policy = self._tokens, self._policy
        tokens.append(token)
        at = len(tokens)
        ends = self._context_ends.setdefault(tuple(tokens[-_CONTEXT_TOKENS:]), [])
        if self._cycle_length and tokens[at - 1 - self._cycle_length] == token:
            self._match_length += 1
        else:
            self._find_cycle(ends)
        ends.append(at)
        self._drop_context(at - policy.max_cycle)
        # A match of n tokens after a cycle of c tokens is n + c tokens of repetition.
        repeated = self._match_length + self._cycle_length
        return (
            self._cycle_length > 0
            and repeated >= policy.repeats * self._cycle_length
            and repeated >= policy.min_tokens
        )

    def _find_cycle(self, ends: list[int]) -> None:
        tokens, at = self._tokens, len(self._tokens)
        self._cycle_length = self._match_length = 0
        for end in reversed(ends):
            run = self._match_length
            if run >= end or tokens[end - 1 - run] != tokens[at - 1 - run]:
                continue  # not longer than the match found so far
            run = _CONTEXT_TOKENS
            while run < end and tokens[end - 1 - run] == tokens[at - 1 - run]:
                run += 1
            if run > self._match_length:
                self._cycle_length, self._match_length = at - end, run

    def _drop_context(self, end: int) -> None:
        """Forget the context that ended at ``end``: it is too far back for a cycle."""
        if end < 1:
            return
        context = tuple(self._tokens[max(end - _CONTEXT_TOKENS, 0) : end])
        ends = self._context_ends[context]
        del ends[0]
        if not ends:
            del self._context_ends[context]
