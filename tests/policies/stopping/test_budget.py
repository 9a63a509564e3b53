"""``budget`` ends a trace at a sentence end after ``max`` tokens, or ``grace`` tokens later."""

from __future__ import annotations

import pytest

from adjourn.policies.events import Extend, Stop, TraceEnded, TraceEnding
from adjourn.policies.stopping.budget import Budget
from tests.policies.session_helpers import cue_checkpoint, probe_result, reasoning_chunk

POLICY = Budget(max=10, grace=4)


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("done.", 9, None),
        ("done.", 10, Stop("budget")),
        ("done. ", 11, Stop("budget")),
        ("done!", 10, Stop("budget")),
        ("done?", 10, Stop("budget")),
        ("done\n\n", 10, Stop("budget")),
        ("好。", 10, Stop("budget")),
        ("and so", 10, None),
        ("and so", 13, None),
        ("and so", 14, Stop("budget-hard")),
        ("done.", 14, Stop("budget")),
        ("", 13, None),
    ],
)
def test_it_stops_at_a_sentence_end_or_after_the_grace(
    text: str, position: int, expected: Stop | None
) -> None:
    """Never before ``max``; from there at a sentence end; from ``max + grace`` anywhere."""
    assert POLICY.start().observe(reasoning_chunk(text, 1, position=position)) == expected


def test_a_chunk_of_several_tokens_is_counted_in_tokens() -> None:
    """Trap 2: one chunk may exceed ``max`` and the grace at once."""
    stopper = POLICY.start()
    assert stopper.observe(reasoning_chunk("a b c", *range(9), position=9)) is None
    assert stopper.observe(reasoning_chunk("d e f", *range(6), position=15)) == Stop("budget-hard")


def test_other_events_never_stop_it() -> None:
    """Trap 6: only reasoning chunks count, however late the others come."""
    stopper = POLICY.start()
    events = [cue_checkpoint(999), probe_result(999), TraceEnded(999, 0.0)]
    assert [stopper.observe(event) for event in events] == [None] * 3


def test_it_extends_a_trace_that_ends_before_min() -> None:
    """At most ``waits`` times."""
    stopper = Budget(min=10, waits=2).start()
    ends = [stopper.observe(TraceEnding(position, 0.0)) for position in (9, 10, 3, 4)]
    assert ends == [Extend(), None, Extend(), None]


def test_by_default_it_extends_no_trace() -> None:
    """Without ``min`` it neither asks for ``TraceEnding`` events nor replies to them."""
    assert not Budget().needs.trace_endings
    assert Budget().start().observe(TraceEnding(0, 0.0)) is None
    assert Budget(min=1).needs.inducers == {"wait", "wait-on-newline"}


@pytest.mark.parametrize(
    "options", [{"max": 0}, {"max": -5}, {"grace": -1}, {"min": 4097}, {"min": -1}]
)
def test_invalid_options_are_refused(options: dict[str, int]) -> None:
    """An empty budget, negative numbers, ``min`` above ``max``."""
    with pytest.raises(ValueError, match="at least"):
        Budget(**options)
