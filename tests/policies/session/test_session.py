"""One request under a policy: how a trace opens, cuts and stops, and the ledger at its end."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.compose import AnyOf
from adjourn.policies.events import (
    Checkpoint,
    Event,
    Probe,
    ProbeResult,
    ReasoningChunk,
    Stop,
    TraceEnded,
)
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs
from adjourn.policies.session.orders import Cut, SendProbe
from adjourn.policies.session.states import State
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from tests.policies.session_driver import ANSWER, END
from tests.policies.session_helpers import (
    CLOSING,
    CLOSING_ON_NEWLINE,
    EAGER_DEER,
    START,
    AlwaysProbe,
    ScriptedPolicy,
    feed_all,
    make_session,
    probe_result,
    token_counts,
)

# -- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ((5, START), State.THINKING),
        ((5, START, 6), State.THINKING),
        ((5,), State.OPENING),
        ((5, START, END), State.OPENING),
        ((START, END, 5, START), State.THINKING),
        ((), State.OPENING),
    ],
)
def test_the_prompts_last_marker_tells(prompt: tuple[int, ...], expected: State) -> None:
    """A trace is open where the last marker among the prompt's ids opens one."""
    made = make_session(Never(), prompt=prompt)
    assert made.state is expected
    assert made.ledger.prompt == len(prompt)


def test_the_model_writes_the_marker() -> None:
    """The first generated id tells where the prompt does not; the marker is no reasoning."""
    made = make_session(Never(), prompt=(5,))
    feed_all(made, ("", START), ("a", 7))
    assert made.state is State.THINKING
    assert token_counts(made) == {"marker": 1, "reasoning": 1}
    assert made.released_chunks == 2


def test_an_answer_without_a_trace() -> None:
    """Where the first id opens nothing, everything is the answer and goes out at once."""
    made = make_session(Never(), prompt=(5,))
    made.feed("", (7,), 0.0, answering=True)
    made.feed("", (8, 9), 0.0, answering=True)
    assert (made.state, made.released_chunks) == (State.ANSWERING, 2)
    assert token_counts(made) == {"answer": 3}


def test_the_role_goes_out_before_anything_is_known() -> None:
    """A first chunk without ids tells nothing, so there is nothing to wait for."""
    made = make_session(EAGER_DEER, prompt=(5,))
    assert made.feed("", (), 0.0) is None
    assert (made.state, made.released_chunks) == (State.OPENING, 1)


def test_reasoning_without_ids_or_marker_is_not_held_back() -> None:
    """An engine that sends no ids is handed through, unjudged."""
    made = make_session(EAGER_DEER, prompt=(5,))
    feed_all(made, ("",), ("Wait, so",), (" on",))
    assert made.released_chunks == 3
    assert made.mute_reason == "no-marker"


def test_reasoning_without_a_marker_is_not_judged() -> None:
    """A model that does not speak the dialect is left alone."""
    made = make_session(EAGER_DEER, prompt=(5,))
    assert feed_all(made, ("so", 7), (" Wait,", 8), (" so", 9)) == [None] * 3
    assert (made.mute_reason, made.released_chunks) == ("no-marker", 3)


# -- cues and places ---------------------------------------------------------------------------


def test_a_cut_before_the_cue() -> None:
    """Cue, probe beside the stream, cut at the piece that the cue begins in, answer."""
    made = make_session(EAGER_DEER)
    assert feed_all(made, ("Seven", 50), (".", 51), (" Wait", 52)) == [None] * 3
    assert made.released_chunks == 2
    ask = made.feed(", no", (53,), 0.1)
    assert ask == SendProbe(Probe(max_tokens=20), kept=2, position=2, closing=CLOSING)
    assert made.feed(" and", (54,), 0.2) is None
    assert made.released_chunks == 2
    cut = made.on_probe_result(probe_result(2, "7", 0.99, at=0.3))
    assert cut == Cut(kept=2, position=2, closing=CLOSING)
    assert made.is_switching_stream
    made.feed(" so", (55,), 0.4)
    made.on_resumed()
    made.on_answer_tokens(4)
    made.on_stream_end()
    assert made.stopped
    assert token_counts(made) == {
        "reasoning": 2,
        "closing": 3,
        "probe": 2,
        "wasted": 4,
        "answer": 4,
    }


def test_a_probe_that_says_no_releases_what_was_held() -> None:
    """The stream never paused: all that came meanwhile goes out at once."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52), (" bit", 53))
    assert made.released_chunks == 1
    assert made.on_probe_result(probe_result(1, "7", 0.5)) is None
    assert (made.state, made.released_chunks) == (State.THINKING, 4)


def test_what_may_become_a_cue_is_held_when_a_probe_says_no() -> None:
    """The beginning of the next cue stays back."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52), (" W", 53))
    made.on_probe_result(probe_result(1, "7", 0.5))
    assert made.released_chunks == 3
    assert made.feed("e", (54,), 0.0) is None
    assert made.released_chunks == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [(".", CLOSING), (".\n", CLOSING_ON_NEWLINE), ("\n\n", CLOSING_ON_NEWLINE)],
)
def test_the_closing_fits_the_place(text: str, expected: tuple[int, ...]) -> None:
    """A place at the beginning of a line gets no second newline."""
    made = make_session(EAGER_DEER)
    feed_all(made, (text, 50), ("Wait", 51))
    ask = made.feed(", no", (52,), 0.0)
    assert isinstance(ask, SendProbe)
    assert ask.closing == expected
    cut = made.on_probe_result(probe_result(ask.position, "7", 0.99))
    assert isinstance(cut, Cut)
    assert cut.closing == made.closing == expected


def test_a_cue_over_chunks_of_several_tokens() -> None:
    """Trap 2: positions are tokens, pieces are not; the cut is where the cue's piece begins."""
    made = make_session(EAGER_DEER)
    assert feed_all(made, ("One two three.", 50, 51, 52, 53), (" Wa", 54, 55)) == [None, None]
    assert made.released_chunks == 1
    ask = made.feed("it, then", (56, 57, 58), 0.0)
    assert ask == SendProbe(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)
    made.on_probe_result(probe_result(4, "7", 0.99))
    assert token_counts(made) == {"reasoning": 4, "closing": 3, "probe": 2, "wasted": 5}


def test_two_cues_of_one_piece_have_places_of_their_own() -> None:
    """Trap 2: what confirms a first cue may hold a second, which lies in a later piece."""
    seen: list[Any] = []

    def script(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            seen.append((event.cue, event.position))
            return Probe() if event.cue == "Hmm" else None
        return Stop("yes", event.position) if isinstance(event, ProbeResult) else None

    made = make_session(ScriptedPolicy(script))
    feed_all(made, ("So.", 50, 51), (" Wait", 52))
    ask = made.feed(", no. Hmm, so", (53, 54, 55, 56, 57), 0.0)
    assert seen == [("Wait", 2), ("Hmm", 3)]
    assert ask == SendProbe(Probe(), kept=3, position=3, closing=CLOSING)
    assert made.released_chunks == 2
    made.feed(" on", (58,), 0.0)
    assert made.on_probe_result(probe_result(3)) == Cut(kept=3, position=3, closing=CLOSING)
    assert made.released_chunks == 2


def test_what_was_no_cue_is_not_cut_off_with_the_next() -> None:
    """A piece that looked like a cue's beginning goes out when the cue begins behind it."""
    made = make_session(EAGER_DEER)
    assert feed_all(made, ("But ", 50), ("Wait", 51)) == [None, None]
    assert made.released_chunks == 1
    assert made.feed(", no", (52,), 0.0) == SendProbe(Probe(max_tokens=20), 1, 1, CLOSING)


def test_half_a_character_is_no_place() -> None:
    """Trap 2: an id without text is part of a character, and goes where the rest goes."""
    made = make_session(EAGER_DEER)
    feed_all(made, ("So.", 50), ("", 51))
    ask = made.feed("é Wait, no", (52, 53, 54, 55), 0.0)
    assert ask == SendProbe(Probe(max_tokens=20), kept=1, position=1, closing=CLOSING)
    assert made.released_chunks == 1


def test_an_interval_in_the_middle_of_a_character() -> None:
    """Trap 2: a checkpoint by token count comes when the character is whole."""
    made = make_session(Convergence(every=3, window=2, min_tokens=0))
    assert feed_all(made, ("a", 50), ("b", 51), ("", 52)) == [None] * 3
    ask = made.feed("é", (53,), 0.0)
    assert ask == SendProbe(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)


def test_a_hard_stop_in_the_middle_of_a_character() -> None:
    """Trap 2: a stop that keeps everything keeps whole characters."""
    made = make_session(Budget(max=2, grace=1))
    cut = feed_all(made, ("a", 50), ("b", 51), ("", 52))[-1]
    if cut is None:
        cut = made.feed("é", (53,), 0.0)
    assert isinstance(cut, Cut)
    assert cut.kept in (2, 4)


def test_a_cut_keeps_the_marker_that_the_model_wrote() -> None:
    """A cue in the marker's own chunk cuts behind the marker: a prefix without it is another."""
    made = make_session(EAGER_DEER, prompt=(5,))
    ask = made.feed("Wait, so", (START, 50, 51), 0.0)
    assert ask == SendProbe(Probe(max_tokens=20), kept=1, position=0, closing=CLOSING_ON_NEWLINE)
    cut = made.on_probe_result(probe_result(0, "7", 0.99))
    assert cut == Cut(kept=1, position=0, closing=CLOSING_ON_NEWLINE)
    assert token_counts(made) == {"marker": 1, "wasted": 2, "closing": 2, "probe": 2}


def test_intervals_are_counted_in_tokens() -> None:
    """Trap 2: a checkpoint every so many tokens, however many a piece brings."""
    seen: list[int] = []

    def script(event: Event) -> Any:
        seen.append(event.position)  # type: ignore[union-attr]

    made = make_session(ScriptedPolicy(script, Needs(interval=4)))
    feed_all(made, *[("x", *range(50, 50 + n)) for n in (1, 2, 3, 9, 1, 1, 1, 1)])
    assert seen == [6, 15, 19]


def test_an_interval_within_what_may_become_a_cue() -> None:
    """A checkpoint by count comes when the text up to it is settled, and is not lost."""
    policy = AnyOf((EAGER_DEER, Convergence(every=3, window=2, min_tokens=0)))
    made = make_session(policy)
    assert feed_all(made, ("a", 50), ("b", 51), (" W", 52)) == [None] * 3
    assert made.released_chunks == 2
    ask = made.feed("e", (53,), 0.0)
    assert ask == SendProbe(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)


# -- stops -------------------------------------------------------------------------------------


def test_a_stop_without_a_probe_keeps_all() -> None:
    """A budget keeps what was decoded, the beginning of a cue too."""
    made = make_session(AnyOf((Budget(max=2, grace=0), EAGER_DEER)))
    cut = feed_all(made, ("a", 50), (" W", 51))[-1]
    assert cut == Cut(kept=2, position=2, closing=CLOSING)
    assert made.released_chunks == 2
    assert made.trigger is not None
    assert made.trigger.stop.reason == "budget-hard"


def test_a_budget_runs_out_while_a_probe_runs() -> None:
    """What the client is shown then is what the model is left with; the late result is counted."""
    made = make_session(AnyOf((EAGER_DEER, Budget(max=4, grace=0))))
    assert isinstance(feed_all(made, (".", 50), (" Wait", 51), (" a", 52))[-1], SendProbe)
    cut = made.feed(" bit", (53,), 0.0)
    assert cut == Cut(kept=4, position=4, closing=CLOSING)
    assert made.released_chunks == 4
    assert made.on_probe_result(probe_result(1, "7", 0.99)) is None
    assert (made.ledger.probe, made.state) == (2, State.CLOSING)


def test_the_model_is_faster_than_the_probe() -> None:
    """A trace that ends by itself is not cut any more: once the answer has begun, never."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    made.feed("", (END, ANSWER), 0.0, answering=True)
    assert (made.state, made.released_chunks) == (State.ANSWERING, 4)
    assert made.on_probe_result(probe_result(1, "7", 0.99)) is None
    made.on_stream_end()
    assert token_counts(made) == {"reasoning": 3, "marker": 1, "answer": 1, "probe": 2}


@pytest.mark.parametrize("spare", ["observe_only", "hold_out"])
def test_a_trigger_that_is_not_carried_out(spare: str) -> None:
    """The trace runs on unjudged, and what it goes on to think is the measure."""
    made = make_session(EAGER_DEER, **{spare: True})
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    assert made.on_probe_result(probe_result(1, "7", 0.99)) is None
    assert made.released_chunks == 3
    assert feed_all(made, (" Wait", 53), (", Wait, no", 54, 55, 56)) == [None, None]
    made.feed("", (END,), 0.0)
    made.on_stream_end()
    assert made.trigger is not None
    assert made.trigger.action == ("observed" if spare == "observe_only" else "held-out")
    assert (made.trigger.position, made.trigger.tokens_after) == (1, 6)
    assert (made.probe_count, made.stopped, made.released_chunks) == (1, False, 6)


@pytest.mark.parametrize("spare", [{}, {"observe_only": True}])
def test_no_policy_is_asked_behind_its_stop(spare: dict[str, bool]) -> None:
    """One trigger a request: the piece that brought it brings no second."""
    heard: list[Event] = []

    def script(event: Event) -> Any:
        heard.append(event)
        return Stop(type(event).__name__)

    made = make_session(
        ScriptedPolicy(script, Needs(cues=True, interval=1, reasoning_chunks=True)), **spare
    )
    feed_all(made, ("Wait, a. Wait, b", 50, 51, 52), (" Wait, c", 53, 54), ("d", 55))
    assert [type(event) for event in heard] == [ReasoningChunk]
    assert made.trigger is not None
    assert made.trigger.stop.reason == "ReasoningChunk"


def test_a_refused_cut_is_undone() -> None:
    """The main stream goes on as if nothing had been: pieces, ledger and answer."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(made.on_probe_result(probe_result(1, "7", 0.99)), Cut)
    made.feed(" bit", (53,), 0.0)
    made.feed("", (END, ANSWER), 0.0, answering=True)
    made.feed("", (ANSWER,), 0.0, answering=True, finish_reason="stop")
    made.on_refused("resume-failed")
    assert (made.state, made.released_chunks) == (State.ANSWERING, 6)
    assert token_counts(made) == {"reasoning": 4, "marker": 1, "answer": 2, "probe": 2}
    assert made.trigger is not None
    assert (made.trigger.action, made.mute_reason, made.stopped) == (
        "refused",
        "resume-failed",
        False,
    )


def test_a_trace_that_ends_in_place() -> None:
    """Nothing is taken back: what came meanwhile and comes until the marker is thought, is the
    client's, and was no trace's natural length."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(made.on_probe_result(probe_result(1, "7", 0.99)), Cut)
    made.feed(" bit", (53,), 0.0)
    assert made.released_chunks == 1
    made.on_ending_in_place()
    assert (made.state, made.released_chunks, made.stopped) == (State.THINKING, 4, True)
    assert feed_all(made, (" Wait", 54), (" more.", 55)) == [None, None]
    assert made.released_chunks == 6
    made.feed("", (END, ANSWER), 0.0, answering=True)
    made.feed("", (ANSWER,), 0.0, answering=True, finish_reason="stop")
    assert (made.state, made.released_chunks) == (State.ANSWERING, 8)
    assert token_counts(made) == {"reasoning": 6, "marker": 1, "answer": 2, "probe": 2}
    assert made.trigger is not None
    assert (made.trigger.action, made.trigger.position, made.mute_reason) == (
        "carried-out",
        1,
        None,
    )
    assert made.trigger.tokens_after is None


def test_a_trace_that_ended_before_it_was_ended() -> None:
    """The model was faster than the engine's word: its marker and answer stand among what came
    meanwhile."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    made.on_probe_result(probe_result(1, "7", 0.99))
    made.feed("", (END, ANSWER), 0.0, answering=True)
    made.on_ending_in_place()
    assert (made.state, made.released_chunks) == (State.ANSWERING, 4)
    assert token_counts(made) == {"reasoning": 3, "marker": 1, "answer": 1, "probe": 2}


def test_a_cut_stays_at_the_end() -> None:
    """What was cut off is never released, the end included."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    made.on_probe_result(probe_result(1, "7", 0.99))
    made.feed(" bit", (53,), 0.0)
    made.on_resumed()
    made.on_stream_end()
    assert (made.state, made.released_chunks) == (State.DONE, 1)


def test_a_stream_that_breaks_off_shows_all_it_had() -> None:
    """No probe and no half cue holds back what there is when it is over."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    made.on_stream_end()
    assert made.released_chunks == 3


def test_a_cue_at_the_end_of_the_stream_is_released() -> None:
    """Trap 1: a cue that the stream ends on is shown like any text."""
    made = make_session(EAGER_DEER)
    feed_all(made, ("So.", 50), (" Wait", 51))
    assert made.released_chunks == 1
    made.on_stream_end()
    assert made.released_chunks == 2


@pytest.mark.parametrize("reason", ["internal-error"])
@pytest.mark.parametrize("probing", [True, False])
def test_giving_up(reason: str, probing: bool) -> None:
    """A driver that fails at a probe or a cut lets the stream go on, unjudged."""
    made = make_session(EAGER_DEER)
    feed_all(made, (".", 50), (" Wait", 51), (" a", 52))
    if not probing:
        made.on_probe_result(probe_result(1, "7", 0.99))
    made.abort_pending(reason)
    assert (made.state, made.mute_reason, made.released_chunks) == (State.THINKING, reason, 3)
    assert feed_all(made, (" Wait", 53), (", no", 54)) == [None, None]
    assert made.released_chunks == 5


# -- the end of a trace ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "answering", "ending", "expected"),
    [
        ((END,), False, None, {"reasoning": 1, "marker": 1}),
        ((51, END, 98, 99), True, None, {"reasoning": 2, "marker": 1, "answer": 2}),
        ((98, 99), True, None, {"reasoning": 1, "answer": 2}),
        ((51, 52), False, "length", {"reasoning": 3}),
        ((END, END), True, None, {"reasoning": 1, "marker": 1, "answer": 1}),
        ((), False, "stop", {"reasoning": 1}),
    ],
)
def test_the_last_piece_is_shared_out(
    ids: tuple[int, ...], answering: bool, ending: str | None, expected: dict[str, int]
) -> None:
    """Trap 2: one piece may hold the end of the trace, the marker and the answer's beginning."""
    made = make_session(Never())
    made.feed("a", (50,), 0.0)
    made.feed("b", ids, 0.0, answering=answering, finish_reason=ending)
    assert made.state is State.ANSWERING
    assert token_counts(made) == expected


def test_a_whole_response_in_one_piece() -> None:
    """Trap 2: marker, trace, marker and answer at once."""
    made = make_session(EAGER_DEER, prompt=(5,))
    made.feed("Wait, 7", (START, 50, 51, END, 99), 0.0, answering=True, finish_reason="stop")
    made.on_stream_end()
    assert token_counts(made) == {"marker": 2, "reasoning": 2, "answer": 1}
    assert made.released_chunks == 1


def test_the_policy_hears_of_the_end() -> None:
    """A trace that ends by itself is told to its policy once."""
    heard: list[Event] = []
    made = make_session(ScriptedPolicy(heard.append, Needs()))
    feed_all(made, ("a", 50), ("b", 51, 52))
    made.feed("", (END,), 7.0)
    made.feed("", (ANSWER,), 8.0, answering=True)
    assert heard == [TraceEnded(3, 7.0)]


@pytest.mark.parametrize(("ending", "known"), [(None, 40), ("stop", 40), ("length", 0)])
def test_a_truncated_trace_is_no_measure_of_length(ending: str | None, known: int) -> None:
    """A trace that the limit ended says nothing of how long it would have been."""

    class Listening(AlwaysProbe):
        ends: list[int]

        def record_trace_length(self, position: int) -> None:
            self.ends.append(position)

    appraiser = Listening()
    appraiser.ends = []
    made = make_session(Never(), appraiser=appraiser)
    made.feed("a", range(50, 90), 0.0)
    made.feed("", (END,) if ending is None else (), 1.0, finish_reason=ending)
    assert appraiser.ends == ([known] if known else [])
