"""``deviation`` stops when uncertain transitions come more often than over the whole trace."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import ReasoningChunk, Stop
from adjourn.policies.stopping.deviation import Deviation
from tests.policies.session_helpers import boundary_checkpoint, cue_checkpoint, probe_result

SURE, UNSURE = (0.0,), (math.log(0.5), math.log(0.5))
POLICY = Deviation(window=10, threshold=2.0, min_tokens=20)


def stops(policy: Deviation, trace: str, size: int = 1) -> int | None:
    """Where it stops in a trace of tokens, in chunks of ``size``: ``W`` is an uncertain cue, ``w``
    a certain one, ``u`` another uncertain token. A cue's position is where its chunk begins."""
    stopper = policy.start()
    for begin in range(0, len(trace), size):
        chunk = trace[begin : begin + size]
        logprobs = tuple(UNSURE if token in "Wu" else SURE for token in chunk)
        ids = tuple(range(len(chunk)))
        stopper.observe(ReasoningChunk("x", ids, begin + len(chunk), 0.0, logprobs))
        for token in chunk:
            if token in "Ww" and (stop := stopper.observe(cue_checkpoint(begin))) is not None:
                assert stop == Stop("deviating", begin)
                return begin
    return None


def oracle(policy: Deviation, trace: str, size: int) -> int | None:
    """The same, computed from the whole trace at each transition."""
    transitions: list[int] = []
    for at, token in enumerate(trace):
        begin = at // size * size
        if token in "Ww" and not {"W", "u"}.isdisjoint(trace[begin : begin + size]):
            transitions.append(begin)
            recent = sum(transition > begin - policy.window for transition in transitions)
            index = recent / policy.window / (len(transitions) / (begin + 1))
            long_enough = begin + 1 >= max(policy.min_tokens, policy.window)
            if long_enough and recent > 1 and index > policy.threshold:
                return begin
    return None


@given(
    st.lists(st.sampled_from(["W", "w", "u", "." * 9, "W.W"]), max_size=20).map("".join),
    st.integers(1, 4),
)
def test_the_incremental_index_equals_the_oracles(trace: str, size: int) -> None:
    """Token by token or in larger chunks."""
    assert stops(POLICY, trace, size) == oracle(POLICY, trace, size)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_transition_within_a_chunk_counts(size: int) -> None:
    """Its position is the beginning of the chunk."""
    assert stops(POLICY, "...W" + "." * 40 + "W.W.W", size) is not None


def test_transitions_in_a_row_stop_it() -> None:
    """After one transition long ago and three close together, it stops at the second of these."""
    assert stops(POLICY, "...W" + "." * 40 + "W.W.W") == 46


def test_a_single_transition_never_stops_it() -> None:
    """However long the trace before it."""
    assert stops(POLICY, "." * 500 + "W") is None


def test_transitions_at_a_steady_rate_never_stop_it() -> None:
    """Trap 6: the recent rate equals that of the whole trace."""
    assert stops(POLICY, "....W" * 500) is None


def test_a_certain_cue_is_no_transition() -> None:
    """The entropy of its first token is below ``entropy``."""
    assert stops(POLICY, "...W" + "." * 40 + "w.w.w") is None


def test_it_does_not_stop_before_min_tokens() -> None:
    """Nor before a whole window."""
    assert stops(Deviation(window=5, threshold=1.5, min_tokens=30), "W" + "." * 20 + "WWW") is None
    assert stops(Deviation(window=5, threshold=1.5, min_tokens=0), "W" + "." * 20 + "WWW") == 22


def test_other_events_never_stop_it() -> None:
    """A sentence end, a probe's result and a cue without an uncertain token."""
    stopper = Deviation(window=1, min_tokens=0, threshold=0.1).start()
    assert [
        stopper.observe(e)
        for e in (boundary_checkpoint("sentence", 9), probe_result(9), cue_checkpoint(9))
    ] == [None] * 3


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"min_tokens": -1}, {"threshold": 0}, {"threshold": math.nan}, {"entropy": -1}],
)
def test_invalid_options_are_refused(options: dict[str, float]) -> None:
    """An empty window, or a threshold that every index exceeds."""
    with pytest.raises(ValueError, match="must"):
        Deviation(**options)
