"""Where a session probes and cuts: cues, intervals, characters, markers."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.compose import AnyOf
from adjourn.policies.events import (
    Checkpoint,
    Event,
    Probe,
    ProbeResult,
    Stop,
)
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import Cut, SendProbe
from adjourn.policies.session.states import State
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from tests.policies.session_helpers import (
    CLOSING,
    CLOSING_ON_NEWLINE,
    EAGER_DEER,
    START,
    ScriptedPolicy,
    feed_all,
    make_session,
    probe_result,
    token_counts,
)


def test_a_confident_probe_cuts_before_the_cue() -> None:
    """Cue, probe while the stream goes on, cut before the chunk with the cue, answer."""
    session = make_session(EAGER_DEER)
    assert feed_all(session, ("Seven", 50), (".", 51), (" Wait", 52)) == [None] * 3
    assert session.released_chunks == 2
    order = session.feed(", no", (53,), 0.1)
    assert order == SendProbe(Probe(max_tokens=20), kept=2, position=2, closing=CLOSING)
    assert session.feed(" and", (54,), 0.2) is None
    assert session.released_chunks == 2
    cut = session.on_probe_result(probe_result(2, "7", 0.99, at=0.3))
    assert cut == Cut(kept=2, position=2, closing=CLOSING)
    assert session.is_switching_stream
    session.feed(" so", (55,), 0.4)
    session.on_resumed()
    session.on_answer_tokens(4)
    session.on_stream_end()
    assert session.stopped
    assert token_counts(session) == {
        "reasoning": 2,
        "closing": 3,
        "probe": 2,
        "wasted": 4,
        "answer": 4,
    }


def test_an_unsure_probe_releases_the_held_chunks() -> None:
    """All chunks that came during the probe are released at once."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52), (" bit", 53))
    assert session.released_chunks == 1
    assert session.on_probe_result(probe_result(1, "7", 0.5)) is None
    assert (session.state, session.released_chunks) == (State.THINKING, 4)


def test_a_possible_cue_stays_held_after_an_unsure_probe() -> None:
    """The beginning of the next cue is not released with the rest."""
    session = make_session(EAGER_DEER)
    feed_all(session, (".", 50), (" Wait", 51), (" a", 52), (" W", 53))
    session.on_probe_result(probe_result(1, "7", 0.5))
    assert session.released_chunks == 3
    assert session.feed("e", (54,), 0.0) is None
    assert session.released_chunks == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [(".", CLOSING), (".\n", CLOSING_ON_NEWLINE), ("\n\n", CLOSING_ON_NEWLINE)],
)
def test_the_closing_sequence_depends_on_the_newline_before_it(
    text: str, expected: tuple[int, ...]
) -> None:
    """After a newline the closing sequence has none of its own."""
    session = make_session(EAGER_DEER)
    feed_all(session, (text, 50), ("Wait", 51))
    order = session.feed(", no", (52,), 0.0)
    assert isinstance(order, SendProbe)
    assert order.closing == expected
    cut = session.on_probe_result(probe_result(order.position, "7", 0.99))
    assert isinstance(cut, Cut)
    assert cut.closing == session.closing == expected


def test_a_cue_across_chunks_of_several_tokens() -> None:
    """Positions count tokens, not chunks; the cut is before the chunk in which the cue begins."""
    session = make_session(EAGER_DEER)
    assert feed_all(session, ("One two three.", 50, 51, 52, 53), (" Wa", 54, 55)) == [None, None]
    assert session.released_chunks == 1
    order = session.feed("it, then", (56, 57, 58), 0.0)
    assert order == SendProbe(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)
    session.on_probe_result(probe_result(4, "7", 0.99))
    assert token_counts(session) == {"reasoning": 4, "closing": 3, "probe": 2, "wasted": 5}


def test_two_cues_in_one_chunk_have_their_own_positions() -> None:
    """The chunk that confirms a first cue may hold a second cue, with a later cut point."""
    checkpoints: list[Any] = []

    def script(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            checkpoints.append((event.cue, event.position))
            return Probe() if event.cue == "Hmm" else None
        return Stop("yes", event.position) if isinstance(event, ProbeResult) else None

    session = make_session(ScriptedPolicy(script))
    feed_all(session, ("So.", 50, 51), (" Wait", 52))
    order = session.feed(", no. Hmm, so", (53, 54, 55, 56, 57), 0.0)
    assert checkpoints == [("Wait", 2), ("Hmm", 3)]
    assert order == SendProbe(Probe(), kept=3, position=3, closing=CLOSING)
    assert session.released_chunks == 2
    session.feed(" on", (58,), 0.0)
    assert session.on_probe_result(probe_result(3)) == Cut(kept=3, position=3, closing=CLOSING)
    assert session.released_chunks == 2


def test_text_that_was_no_cue_is_kept_before_the_next_cue() -> None:
    """A chunk that may begin a cue is released when the cue turns out to begin after it."""
    session = make_session(EAGER_DEER)
    assert feed_all(session, ("But ", 50), ("Wait", 51)) == [None, None]
    assert session.released_chunks == 1
    assert session.feed(", no", (52,), 0.0) == SendProbe(Probe(max_tokens=20), 1, 1, CLOSING)


def test_no_cut_point_within_a_character() -> None:
    """An id without text is part of a character, and is kept or dropped with the rest of it."""
    session = make_session(EAGER_DEER)
    feed_all(session, ("So.", 50), ("", 51))
    order = session.feed("é Wait, no", (52, 53, 54, 55), 0.0)
    assert order == SendProbe(Probe(max_tokens=20), kept=1, position=1, closing=CLOSING)
    assert session.released_chunks == 1


def test_an_interval_checkpoint_waits_for_the_complete_character() -> None:
    """A checkpoint by token count comes when the character is complete."""
    session = make_session(Convergence(every=3, window=2, min_tokens=0))
    assert feed_all(session, ("a", 50), ("b", 51), ("", 52)) == [None] * 3
    order = session.feed("é", (53,), 0.0)
    assert order == SendProbe(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)


def test_a_hard_stop_never_splits_a_character() -> None:
    """A stop that keeps everything keeps complete characters only."""
    session = make_session(Budget(max=2, grace=1))
    cut = feed_all(session, ("a", 50), ("b", 51), ("", 52))[-1]
    if cut is None:
        cut = session.feed("é", (53,), 0.0)
    assert isinstance(cut, Cut)
    assert cut.kept in (2, 4)


def test_a_cut_keeps_the_models_own_start_marker() -> None:
    """A cue in the same chunk as the marker cuts after the marker: the prefix must include it."""
    session = make_session(EAGER_DEER, prompt=(5,))
    order = session.feed("Wait, so", (START, 50, 51), 0.0)
    assert order == SendProbe(Probe(max_tokens=20), kept=1, position=0, closing=CLOSING_ON_NEWLINE)
    cut = session.on_probe_result(probe_result(0, "7", 0.99))
    assert cut == Cut(kept=1, position=0, closing=CLOSING_ON_NEWLINE)
    assert token_counts(session) == {"marker": 1, "wasted": 2, "closing": 2, "probe": 2}


def test_intervals_count_tokens() -> None:
    """A checkpoint every so many tokens, however many tokens a chunk has."""
    positions: list[int] = []

    def script(event: Event) -> Any:
        positions.append(event.position)  # type: ignore[union-attr]

    session = make_session(ScriptedPolicy(script, Needs(interval=4)))
    feed_all(session, *[("x", *range(50, 50 + n)) for n in (1, 2, 3, 9, 1, 1, 1, 1)])
    assert positions == [6, 15, 19]


def test_an_interval_checkpoint_waits_until_a_possible_cue_is_decided() -> None:
    """It comes once the text up to it is settled, and is not lost."""
    policy = AnyOf((EAGER_DEER, Convergence(every=3, window=2, min_tokens=0)))
    session = make_session(policy)
    assert feed_all(session, ("a", 50), ("b", 51), (" W", 52)) == [None] * 3
    assert session.released_chunks == 2
    order = session.feed("e", (53,), 0.0)
    assert order == SendProbe(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)
