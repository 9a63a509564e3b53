"""``budget`` ends a trace at the end of a sentence behind ``max`` tokens, else ``grace`` later."""

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
def test_where_it_stops(text: str, position: int, expected: Stop | None) -> None:
    """Never before ``max``; from there at a sentence's end; at ``max + grace`` anywhere."""
    assert POLICY.start().observe(reasoning_chunk(text, 1, position=position)) == expected


def test_a_chunk_of_several_tokens_is_counted_in_tokens() -> None:
    """Trap 2: one piece may jump over ``max`` and the grace, and counts for what it brings."""
    stopper = POLICY.start()
    assert stopper.observe(reasoning_chunk("a b c", *range(9), position=9)) is None
    assert stopper.observe(reasoning_chunk("d e f", *range(6), position=15)) == Stop("budget-hard")


def test_it_does_not_stop_whatever_happens() -> None:
    """Trap 6: events that are not thoughts never stop it, however late."""
    stopper = POLICY.start()
    events = [cue_checkpoint(999), probe_result(999), TraceEnded(999, 0.0)]
    assert [stopper.observe(event) for event in events] == [None] * 3


def test_it_thinks_no_less_than_min() -> None:
    """An end before ``min`` tokens is put off, ``waits`` times at most."""
    stopper = Budget(min=10, waits=2).start()
    ends = [stopper.observe(TraceEnding(position, 0.0)) for position in (9, 10, 3, 4)]
    assert ends == [Extend(), None, Extend(), None]


def test_by_default_every_end_stands() -> None:
    """Nothing is asked for, and nothing done, without a ``min``."""
    assert not Budget().needs.trace_endings
    assert Budget().start().observe(TraceEnding(0, 0.0)) is None
    assert Budget(min=1).needs.inducers == {"wait", "wait-on-newline"}


@pytest.mark.parametrize(
    "options", [{"max": 0}, {"max": -5}, {"grace": -1}, {"min": 4097}, {"min": -1}]
)
def test_options_that_make_no_sense(options: dict[str, int]) -> None:
    """A budget of nothing is refused."""
    with pytest.raises(ValueError, match="at least"):
        Budget(**options)
