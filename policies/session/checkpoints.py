"""Find a policy's checkpoints in the text of a trace."""

from __future__ import annotations

from operator import attrgetter

from adjourn.policies.events import Checkpoint, CheckpointKind
from adjourn.policies.policy import Needs
from adjourn.policies.session.window import CutPoint
from adjourn.policies.text.boundaries import Boundary, BoundaryScanner
from adjourn.policies.text.cues import Cue, CueScanner
from adjourn.policies.text.fences import FENCE_CHARS, FenceScanner

__all__ = ["Checkpoints"]


class Checkpoints:
    """Finds the checkpoints that a policy declares in ``needs``.

    state                    content                                             changed by
    -----------------------  --------------------------------------------------  ---------------
    _cue_scanner, _fences,   the text read so far                                find; try_skip (the
    _boundary_scanner                                                            cue scanner only)
    next_interval_position   where the next ``interval`` checkpoint is due, in   take_interval
                             tokens of the trace; 0 if the policy needs none
    deferred                 the latest checkpoint of each kind that the policy  find, take,
                             has not seen, because a probe was in flight; None   defer_interval
                             for an interval. The kind that has waited longest
                             is first.
    cue_count                cues found so far                                   find
    _start_due               the ``start`` checkpoint is still to come           take_start
    """

    __slots__ = (
        *("_boundary_kinds", "_boundary_scanner", "_cue_scanner", "_fences", "_interval"),
        *("_only_cues", "_start_due", "cue_count", "deferred", "next_interval_position"),
        "try_skip",
    )

    def __init__(self, needs: Needs, cues: tuple[str, ...]) -> None:
        self._cue_scanner = CueScanner(cues if needs.cues else (), FENCE_CHARS)
        self._boundary_kinds = needs.boundary_kinds
        self._boundary_scanner = BoundaryScanner() if self._boundary_kinds else None
        self._fences = FenceScanner()
        self._interval = self.next_interval_position = needs.interval
        self._start_due = needs.start
        self._only_cues = not (
            needs.start or needs.reasoning_chunks or needs.interval or self._boundary_kinds
        )
        self.deferred: dict[CheckpointKind, Cue | Boundary | None] = {}
        self.cue_count = 0
        self.try_skip = self._cue_scanner.try_skip

    @property
    def can_skip(self) -> bool:
        """Whether text that ``try_skip`` accepts needs no ``find``: only cues matter to the policy,
        and no fence is open that the text could close."""
        return self._only_cues and not self._fences.is_open

    @property
    def in_fence(self) -> bool:
        """Whether the text ends within a code fence or a quoted string."""
        return self._fences.is_open

    @property
    def text_length(self) -> int:
        """Characters of the trace read so far."""
        return self._cue_scanner.length

    @property
    def settled_length(self) -> int:
        """Characters of the trace in which no further checkpoint can be found."""
        settled = self._cue_scanner.settled_length
        if self._boundary_scanner is None:
            return settled
        return min(settled, self._boundary_scanner.settled_length)

    def find(self, text: str) -> list[Cue | Boundary]:
        """Read a chunk's text. Returns the checkpoints that are certain now, in the order of the
        text; they are deferred until ``take`` is called for them."""
        self._fences.feed(text, self._cue_scanner.length)
        cues = self._cue_scanner.feed(text)
        self.cue_count += len(cues)
        finds: list[Cue | Boundary] = [*cues]
        if self._boundary_scanner is not None:
            ends = self._boundary_scanner.feed(text)
            kinds = self._boundary_kinds
            finds = sorted(
                [*(end for end in ends if end.kind in kinds), *cues], key=attrgetter("start")
            )
        for find in finds:
            self.deferred[find.kind] = find
        return finds

    def take(self, find: Cue | Boundary) -> None:
        """The policy is asked at this checkpoint now: it is deferred no longer."""
        if self.deferred.get(find.kind) is find:
            del self.deferred[find.kind]

    def take_start(self, text: str) -> bool:
        """Whether the ``start`` checkpoint is due before ``text``. True once per trace."""
        if not self._start_due or not text.strip():
            return False
        self._start_due = False
        return True

    def is_interval_due(self, position: int) -> bool:
        """Whether an ``interval`` checkpoint is due at ``position`` tokens of the trace."""
        return 0 < self.next_interval_position <= position

    def take_interval(self, place: CutPoint) -> bool:
        """Whether an ``interval`` checkpoint that is due can be visited at ``place``; then the next
        is due one interval later. Not within a fence: no cut is possible there."""
        if place.in_fence:
            return False
        self.next_interval_position = place.position + self._interval
        return True

    def defer_interval(self, position: int) -> None:
        """Defer an interval checkpoint that is due at ``position``.

        Only if other checkpoints are deferred too, so that intervals get their turn among them.
        Otherwise the first chunk after the probe checks the interval in any case.
        """
        if self.deferred and self.is_interval_due(position):
            self.deferred.setdefault("interval")

    def event(self, find: Cue | Boundary, position: int, at: float) -> Checkpoint:
        """The event that shows ``find`` to the policy. ``at``: seconds of a monotonic clock."""
        if isinstance(find, Cue):
            return Checkpoint("cue", position, at, cue=find.word)
        return Checkpoint(find.kind, position, at, text=find.text)
