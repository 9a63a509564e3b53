"""Recorded chunks as a session takes them, and the runs of chunks that may be fed as one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate, chain, groupby

from adjourn.policies.text.boundaries import BoundaryScanner
from adjourn.policies.text.cues import CueScanner
from adjourn.policies.text.dialect import TokenizedDialect
from adjourn.policies.text.markers import NO_PARTIAL_MATCH

__all__ = ["ChunkSpan", "FeedArguments", "group_spans", "no_boundary_test", "no_cue_test"]

FeedArguments = tuple[str, tuple[int, ...], float, bool, str | None, tuple[tuple[float, ...], ...]]
"""The arguments of ``Session.feed`` for one chunk: text, ids, time, whether it has answer text, the
finish reason, and for each token the log-probabilities of its most probable candidates."""


class ChunkSpan:
    """Consecutive chunks without a checkpoint.

    ``end_positions``: the position after each chunk, in tokens. ``is_mergeable``: the span has
    several chunks, which may be fed as one if nothing else is due between them.
    """

    def __init__(self, feed_arguments: list[FeedArguments], start_position: int) -> None:
        self.feed_arguments = feed_arguments
        self.end_positions = list(
            accumulate((len(feed[1]) for feed in feed_arguments), initial=start_position)
        )[1:]
        self.is_mergeable = len(feed_arguments) > 1
        self._text = "".join(feed[0] for feed in feed_arguments)
        self._ids = tuple(chain.from_iterable(feed[1] for feed in feed_arguments))

    def end_before(self, begin: int, position: float) -> int:
        """The end index of the chunks from index ``begin`` that end before ``position``."""
        return (
            len(self.feed_arguments)
            if self.end_positions[-1] < position
            else bisect_left(self.end_positions, position, begin)
        )

    def merge(self, begin: int, end: int) -> FeedArguments:
        """The chunks with these indices as one. Several chunks lose their log-probabilities."""
        if end - begin == 1:
            return self.feed_arguments[begin]
        at = self.feed_arguments[end - 1][2]
        if end - begin == len(self.feed_arguments):
            return self._text, self._ids, at, False, None, ()
        part = self.feed_arguments[begin:end]
        ids = tuple(chain.from_iterable(feed[1] for feed in part))
        return "".join(feed[0] for feed in part), ids, at, False, None, ()


def group_spans(
    feed_arguments: Iterable[FeedArguments],
    start_position: int,
    is_mergeable: Callable[[FeedArguments], bool],
) -> list[ChunkSpan]:
    """Put consecutive chunks for which ``is_mergeable`` holds into one span; each other chunk is a
    span of its own."""
    spans, position = list[ChunkSpan](), start_position
    for mergeable, group in groupby(feed_arguments, is_mergeable):
        for feeds in [list(group)] if mergeable else [[feed] for feed in group]:
            spans.append(ChunkSpan(feeds, position))
            position = spans[-1].end_positions[-1]
    return spans


def no_cue_test(dialect: TokenizedDialect) -> Callable[[FeedArguments], bool]:
    """A function that is called with one chunk after the other: True if the chunk has no part of a
    cue or of a marker."""
    scanner, started, partial_match = CueScanner(dialect.definition.cues), False, NO_PARTIAL_MATCH

    def has_no_cue(feed: FeedArguments) -> bool:
        nonlocal started, partial_match
        text, ids, _, answering, finish_reason, _ = feed
        in_marker = False
        for token in ids:
            before, partial_match = partial_match, dialect.matcher.advance(partial_match, token)
            in_marker = in_marker or before != NO_PARTIAL_MATCH
            in_marker = in_marker or partial_match != NO_PARTIAL_MATCH
        skipped = text != "" and scanner.try_skip(text)
        if not skipped:
            scanner.feed(text)
        # The first chunk of a trace starts the session's clock, so it is never merged.
        is_first, started = not started, started or text != ""
        return skipped and not (is_first or answering or finish_reason or in_marker)

    return has_no_cue


def no_boundary_test() -> Callable[[FeedArguments], bool]:
    """A function that is called with one chunk after the other: True if no sentence, paragraph or
    step ends in the chunk, nor may have ended there."""
    scanner = BoundaryScanner()

    def has_no_boundary(feed: FeedArguments) -> bool:
        found = scanner.feed(feed[0])
        return not found and scanner.settled_length == scanner.length

    return has_no_boundary
