"""The chunks of a trace that are held back from the client, and where the trace can be cut."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from adjourn.policies.text.graphemes import ends_mid_grapheme

__all__ = ["CutPoint", "Window"]


@dataclass(frozen=True, slots=True)
class CutPoint:
    """A place between two chunks where the trace can be cut.

    ``chunks``, ``text_offset``, ``kept`` and ``position`` count what comes before it: chunks,
    characters of the trace, generated ids, and tokens of the trace. ``opening_ids``: ids of the
    next chunk that are in ``kept`` too, because they are the marker that opened the trace.
    ``on_newline``: the text before it ends a line. ``in_fence``: a code fence or a quoted string is
    open there.
    """

    chunks: int
    text_offset: int
    kept: int
    position: int
    on_newline: bool
    in_fence: bool
    opening_ids: int = 0


class Window:
    """The chunks that are generated but not released to the client.

    state            content                                                   changed by
    ---------------  --------------------------------------------------------  ------------------
    held             the cut point before each chunk that is held back         hold, release_*,
                                                                               clear, drop_partial
    partial_start    the cut point before a character or a marker that may     track_partial,
                     be incomplete; None if the text ends with a complete one  clear, drop_partial
    _partial_text    the text after ``partial_start``                          track_partial,
                                                                               drop_partial

    Invariant: the chunks after ``partial_start`` are never released while the trace is open, so
    that no cut splits a character or a marker.
    """

    __slots__ = ("_partial_text", "held", "partial_start")

    def __init__(self) -> None:
        self.held: deque[CutPoint] = deque()
        self.partial_start: CutPoint | None = None
        self._partial_text = ""

    def track_partial(
        self, text: str, before: CutPoint, *, has_tokens: bool, in_marker: bool
    ) -> None:
        """Add a chunk's text. ``before``: the cut point before the chunk, or before the incomplete
        character that it continues. ``in_marker``: its last ids may begin a marker."""
        self._partial_text += text
        complete = text and not in_marker and not ends_mid_grapheme(self._partial_text)
        if complete or not has_tokens:
            self.partial_start, self._partial_text = None, ""
        else:
            self.partial_start = before

    def hold(self, before: CutPoint) -> None:
        """Hold back the chunk after ``before``. Chunks of one partial character share it."""
        if not (self.held and self.held[-1] is before):
            self.held.append(before)

    def release_until(self, text_offset: int, text_length: int, chunk_count: int) -> int:
        """Release the chunks whose text ends at or before ``text_offset`` characters of the trace.

        ``text_length`` and ``chunk_count`` are of the whole trace. Returns the number of chunks
        released so far.
        """
        held = self.held
        # A chunk's text ends where the next one starts, that of the last one at the end.
        while len(held) > 1 and held[1].text_offset <= text_offset:
            held.popleft()
        if held and text_offset >= text_length and held[0] is not self.partial_start:
            held.clear()
        return held[0].chunks if held else chunk_count

    def release_all(self, chunk_count: int) -> int:
        """Release all but an incomplete character. Returns the number of chunks released so far."""
        self.held.clear()
        return chunk_count if self.partial_start is None else self.partial_start.chunks

    def clear(self) -> None:
        """The trace has ended: hold back nothing."""
        self.held.clear()
        self.partial_start = None

    def drop_partial(self) -> None:
        """The incomplete character is not kept: the trace continues before it."""
        if self.partial_start is not None and self.held:
            self.held.pop()
        self.partial_start, self._partial_text = None, ""
