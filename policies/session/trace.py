"""The reasoning trace of one response: what is generated, what is released, where to cut it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adjourn.policies.policy import Needs
from adjourn.policies.session.bounds import TraceBounds
from adjourn.policies.session.checkpoints import Checkpoints
from adjourn.policies.session.ledger import Ledger
from adjourn.policies.session.states import TRANSITIONS, Input, State
from adjourn.policies.session.trigger import Trigger
from adjourn.policies.session.window import CutPoint, Window
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.policies.text.markers import TokenIds

__all__ = ["ReceivedChunk", "Trace"]


@dataclass(slots=True)
class ReceivedChunk:
    """The arguments of one call of ``Session.feed``. Not changed after it is made."""

    reasoning: str
    ids: Sequence[int]
    at: float
    answering: bool
    finish_reason: str | None


class Trace:
    """The position in one response, shared by the machines of a ``Session``. Knows no policy.

    state             content                                                changed by
    ----------------  -----------------------------------------------------  --------------------
    state             the row of ``TRANSITIONS`` in force                    transition
    prompt            the prompt's ids                                       Session.on_prompt
    generated         the ids of the response's main stream, without those   Session, StreamSwitch
                      that a reopened trace dropped
    ledger            the tokens counted so far                              Session, StreamSwitch
    trigger           the stop, once there is one                            Consultation; its
                                                                             action: Session
    chunk_count       chunks received                                        Session, StreamSwitch
    released_chunks   chunks that may go to the client                       Session, StreamSwitch,
                                                                             release_*
    on_newline        the last text ends a line                              Session
    bounds, window,   machines of their own; see there
    checkpoints

    """

    def __init__(self, dialect: TokenizedDialect, needs: Needs) -> None:
        self.dialect = dialect
        self.state = State.OPENING
        self.prompt: Sequence[int] = ()
        self.generated: list[int] = []
        self.ledger = Ledger()
        self.trigger: Trigger | None = None
        self.chunk_count = 0
        self.released_chunks = 0
        self.on_newline = True
        self.bounds = TraceBounds(dialect.matcher)
        self.window = Window()
        self.checkpoints = Checkpoints(needs, dialect.definition.cues)

    @property
    def is_switching_stream(self) -> bool:
        """Whether another stream is being opened, which may replace the main stream: until that is
        known, the end of the main stream does not end the response."""
        return self.state in (State.CLOSING, State.REOPENING)

    @property
    def stopped(self) -> bool:
        """Whether a policy's stop was carried out."""
        return self.trigger is not None and self.trigger.action == "carried-out"

    @property
    def current_point(self) -> CutPoint:
        """The cut point after all chunks received."""
        return CutPoint(
            self.chunk_count,
            self.checkpoints.text_length,
            len(self.generated),
            self.ledger.reasoning,
            self.on_newline,
            self.checkpoints.in_fence,
        )

    @property
    def cut_point(self) -> CutPoint:
        """The cut point after the released chunks: a stop or a probe applies here."""
        return self.window.held[0] if self.window.held else self.current_point

    @property
    def cut_position(self) -> int:
        """``cut_point.position``, for those who need only that."""
        held = self.window.held
        return held[0].position if held else self.ledger.reasoning

    def transition(self, signal: Input) -> None:
        """Raises KeyError if the table has no such transition."""
        self.state = TRANSITIONS[self.state][signal]

    def release_until(self, text_offset: int) -> None:
        """Release the chunks whose text ends at or before this many characters of the trace."""
        self.released_chunks = self.window.release_until(
            text_offset, self.checkpoints.text_length, self.chunk_count
        )

    def release_settled(self) -> None:
        """Release the chunks in which no further checkpoint can be found."""
        self.release_until(self.checkpoints.settled_length)

    def release_all(self) -> None:
        """The policy is no longer asked: release all but an incomplete character."""
        self.released_chunks = max(self.released_chunks, self.window.release_all(self.chunk_count))

    def closing_at(self, place: CutPoint) -> TokenIds:
        """The closing sequence for a cut at ``place``."""
        return self.dialect.closing_on_newline if place.on_newline else self.dialect.closing
