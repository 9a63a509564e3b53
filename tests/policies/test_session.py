"""One request under a policy: the table, the places of cuts, the ledger, and what goes wrong."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import session as module
from policies.appraisal import Appraiser
from policies.budget import Budget
from policies.compose import AllOf, AnyOf
from policies.convergence import Convergence
from policies.deer import Deer
from policies.deer_pro import DeerPro
from policies.entropy import Entropy
from policies.events import (
    Checkpoint,
    Closing,
    Event,
    Extend,
    Probe,
    ProbeResult,
    Stop,
    Thought,
    TraceEnd,
)
from policies.loop import Loop
from policies.margin import Margin
from policies.never import Never
from policies.no_thinking import NoThinking
from policies.policy import Needs, Policy, Stopper
from policies.session import TABLE, Ask, Cut, Order, Reopen, Said, Session, State
from policies.tilt import Tilt
from tests.policies.driver import ANSWER, END, EOS, VOCABULARY, Driver, chunks
from tests.policies.lab import (
    CLOSING,
    CLOSING_ON_NEWLINE,
    CUES,
    MARKS,
    PROMPT,
    START,
    Generous,
    Scripted,
    result,
    session,
)

GATE = Probe(max_tokens=1)
EAGER = Deer(gate=0, gap=0)
THOUGHTS = Needs(thoughts=True)


def fed(made: Session, *pieces: tuple[str, *tuple[int, ...]]) -> list[Order | None]:
    """What the session says to each piece."""
    return [made.feed(text, ids, at=0.0) for text, *ids in pieces]


def kinds(made: Session) -> dict[str, int]:
    """The ledger's entries that are not nothing, the prompt's aside."""
    names = ("reasoning", "answer", "marker", "closing", "probe", "wasted")
    return {name: value for name in names if (value := getattr(made.ledger, name))}


# -- the table ---------------------------------------------------------------------------------


def test_the_table_in_the_text_is_the_table_in_force() -> None:
    """The module's prose and its data say the same."""
    rows = re.findall(r"^    (\w+) +(\S+(?: \S+)?)  +(\w+)(?:  |$)", module.__doc__ or "", re.M)
    written = {row for row in rows if row[0] not in ("state", "any")}
    expected = {
        (state.value, signal.value, after.value)
        for state, row in TABLE.items()
        for signal, after in row.items()
        if signal.value != "end"
    }
    assert written == expected
    assert ("any", "end", "done") in rows
    assert {row[module.Input.END] for row in TABLE.values()} == {State.DONE}


def test_every_state_can_be_reached() -> None:
    """No row of the table is dead."""
    reached = {State.OPENING}
    for _ in State:
        reached |= {after for state in reached for after in TABLE[state].values()}
    assert reached == set(State)


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
    made = session(Never(), prompt=prompt)
    assert made.state is expected
    assert made.ledger.prompt == len(prompt)


def test_the_model_writes_the_marker() -> None:
    """The first generated id tells where the prompt does not; the marker is no reasoning."""
    made = session(Never(), prompt=(5,))
    fed(made, ("", START), ("a", 7))
    assert made.state is State.THINKING
    assert kinds(made) == {"marker": 1, "reasoning": 1}
    assert made.released == 2


def test_an_answer_without_a_trace() -> None:
    """Where the first id opens nothing, everything is the answer and goes out at once."""
    made = session(Never(), prompt=(5,))
    made.feed("", (7,), 0.0, answering=True)
    made.feed("", (8, 9), 0.0, answering=True)
    assert (made.state, made.released) == (State.ANSWERING, 2)
    assert kinds(made) == {"answer": 3}


def test_the_role_goes_out_before_anything_is_known() -> None:
    """A first chunk without ids tells nothing, so there is nothing to wait for."""
    made = session(EAGER, prompt=(5,))
    assert made.feed("", (), 0.0) is None
    assert (made.state, made.released) == (State.OPENING, 1)


def test_reasoning_without_ids_or_marker_is_not_held_back() -> None:
    """An engine that sends no ids is handed through, unjudged."""
    made = session(EAGER, prompt=(5,))
    fed(made, ("",), ("Wait, so",), (" on",))
    assert made.released == 3
    assert made.muted == "no-marker"


def test_reasoning_without_a_marker_is_not_judged() -> None:
    """A model that does not speak the dialect is left alone."""
    made = session(EAGER, prompt=(5,))
    assert fed(made, ("so", 7), (" Wait,", 8), (" so", 9)) == [None] * 3
    assert (made.muted, made.released) == ("no-marker", 3)


# -- cues and places ---------------------------------------------------------------------------


def test_a_cut_before_the_cue() -> None:
    """Cue, probe beside the stream, cut at the piece that the cue begins in, answer."""
    made = session(EAGER)
    assert fed(made, ("Seven", 50), (".", 51), (" Wait", 52)) == [None] * 3
    assert made.released == 2
    ask = made.feed(", no", (53,), 0.1)
    assert ask == Ask(Probe(max_tokens=20), kept=2, position=2, closing=CLOSING)
    assert made.feed(" and", (54,), 0.2) is None
    assert made.released == 2
    cut = made.probed(result(2, "7", 0.99, at=0.3))
    assert cut == Cut(kept=2, position=2, closing=CLOSING)
    assert made.waiting
    made.feed(" so", (55,), 0.4)
    made.resumed()
    made.answered(4)
    made.ended()
    assert made.stopped
    assert kinds(made) == {"reasoning": 2, "closing": 3, "probe": 2, "wasted": 4, "answer": 4}


def test_a_probe_that_says_no_releases_what_was_held() -> None:
    """The stream never paused: all that came meanwhile goes out at once."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52), (" bit", 53))
    assert made.released == 1
    assert made.probed(result(1, "7", 0.5)) is None
    assert (made.state, made.released) == (State.THINKING, 4)


def test_what_may_become_a_cue_is_held_when_a_probe_says_no() -> None:
    """The beginning of the next cue stays back."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52), (" W", 53))
    made.probed(result(1, "7", 0.5))
    assert made.released == 3
    assert made.feed("e", (54,), 0.0) is None
    assert made.released == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [(".", CLOSING), (".\n", CLOSING_ON_NEWLINE), ("\n\n", CLOSING_ON_NEWLINE)],
)
def test_the_closing_fits_the_place(text: str, expected: tuple[int, ...]) -> None:
    """A place at the beginning of a line gets no second newline."""
    made = session(EAGER)
    fed(made, (text, 50), ("Wait", 51))
    ask = made.feed(", no", (52,), 0.0)
    assert isinstance(ask, Ask)
    assert ask.closing == expected
    cut = made.probed(result(ask.position, "7", 0.99))
    assert isinstance(cut, Cut)
    assert cut.closing == made.closing == expected


def test_a_cue_over_chunks_of_several_tokens() -> None:
    """Trap 2: positions are tokens, pieces are not; the cut is where the cue's piece begins."""
    made = session(EAGER)
    assert fed(made, ("One two three.", 50, 51, 52, 53), (" Wa", 54, 55)) == [None, None]
    assert made.released == 1
    ask = made.feed("it, then", (56, 57, 58), 0.0)
    assert ask == Ask(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)
    made.probed(result(4, "7", 0.99))
    assert kinds(made) == {"reasoning": 4, "closing": 3, "probe": 2, "wasted": 5}


def test_two_cues_of_one_piece_have_places_of_their_own() -> None:
    """Trap 2: what confirms a first cue may hold a second, which lies in a later piece."""
    seen: list[Any] = []

    def script(event: Event) -> Any:
        if isinstance(event, Checkpoint):
            seen.append((event.cue, event.position))
            return Probe() if event.cue == "Hmm" else None
        return Stop("yes", event.position) if isinstance(event, ProbeResult) else None

    made = session(Scripted(script))
    fed(made, ("So.", 50, 51), (" Wait", 52))
    ask = made.feed(", no. Hmm, so", (53, 54, 55, 56, 57), 0.0)
    assert seen == [("Wait", 2), ("Hmm", 3)]
    assert ask == Ask(Probe(), kept=3, position=3, closing=CLOSING)
    assert made.released == 2
    made.feed(" on", (58,), 0.0)
    assert made.probed(result(3)) == Cut(kept=3, position=3, closing=CLOSING)
    assert made.released == 2


def test_what_was_no_cue_is_not_cut_off_with_the_next() -> None:
    """A piece that looked like a cue's beginning goes out when the cue begins behind it."""
    made = session(EAGER)
    assert fed(made, ("But ", 50), ("Wait", 51)) == [None, None]
    assert made.released == 1
    assert made.feed(", no", (52,), 0.0) == Ask(Probe(max_tokens=20), 1, 1, CLOSING)


def test_half_a_character_is_no_place() -> None:
    """Trap 2: an id without text is part of a character, and goes where the rest goes."""
    made = session(EAGER)
    fed(made, ("So.", 50), ("", 51))
    ask = made.feed("é Wait, no", (52, 53, 54, 55), 0.0)
    assert ask == Ask(Probe(max_tokens=20), kept=1, position=1, closing=CLOSING)
    assert made.released == 1


def test_an_interval_in_the_middle_of_a_character() -> None:
    """Trap 2: a checkpoint by token count comes when the character is whole."""
    made = session(Convergence(every=3, window=2, min_tokens=0))
    assert fed(made, ("a", 50), ("b", 51), ("", 52)) == [None] * 3
    ask = made.feed("é", (53,), 0.0)
    assert ask == Ask(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)


def test_a_hard_stop_in_the_middle_of_a_character() -> None:
    """Trap 2: a stop that keeps everything keeps whole characters."""
    made = session(Budget(max=2, grace=1))
    cut = fed(made, ("a", 50), ("b", 51), ("", 52))[-1]
    if cut is None:
        cut = made.feed("é", (53,), 0.0)
    assert isinstance(cut, Cut)
    assert cut.kept in (2, 4)


def test_a_cut_keeps_the_marker_that_the_model_wrote() -> None:
    """A cue in the marker's own chunk cuts behind the marker: a prefix without it is another."""
    made = session(EAGER, prompt=(5,))
    ask = made.feed("Wait, so", (START, 50, 51), 0.0)
    assert ask == Ask(Probe(max_tokens=20), kept=1, position=0, closing=CLOSING_ON_NEWLINE)
    cut = made.probed(result(0, "7", 0.99))
    assert cut == Cut(kept=1, position=0, closing=CLOSING_ON_NEWLINE)
    assert kinds(made) == {"marker": 1, "wasted": 2, "closing": 2, "probe": 2}


def test_intervals_are_counted_in_tokens() -> None:
    """Trap 2: a checkpoint every so many tokens, however many a piece brings."""
    seen: list[int] = []

    def script(event: Event) -> Any:
        seen.append(event.position)  # type: ignore[union-attr]

    made = session(Scripted(script, Needs(interval=4)))
    fed(made, *[("x", *range(50, 50 + n)) for n in (1, 2, 3, 9, 1, 1, 1, 1)])
    assert seen == [6, 15, 19]


def test_an_interval_within_what_may_become_a_cue() -> None:
    """A checkpoint by count comes when the text up to it is settled, and is not lost."""
    policy = AnyOf((EAGER, Convergence(every=3, window=2, min_tokens=0)))
    made = session(policy)
    assert fed(made, ("a", 50), ("b", 51), (" W", 52)) == [None] * 3
    assert made.released == 2
    ask = made.feed("e", (53,), 0.0)
    assert ask == Ask(Probe(max_tokens=20), kept=4, position=4, closing=CLOSING)


# -- stops -------------------------------------------------------------------------------------


def test_a_stop_without_a_probe_keeps_all() -> None:
    """A budget keeps what was decoded, the beginning of a cue too."""
    made = session(AnyOf((Budget(max=2, grace=0), EAGER)))
    cut = fed(made, ("a", 50), (" W", 51))[-1]
    assert cut == Cut(kept=2, position=2, closing=CLOSING)
    assert made.released == 2
    assert made.trigger is not None
    assert made.trigger.stop.reason == "budget-hard"


def test_a_budget_runs_out_while_a_probe_runs() -> None:
    """What the client is shown then is what the model is left with; the late result is counted."""
    made = session(AnyOf((EAGER, Budget(max=4, grace=0))))
    assert isinstance(fed(made, (".", 50), (" Wait", 51), (" a", 52))[-1], Ask)
    cut = made.feed(" bit", (53,), 0.0)
    assert cut == Cut(kept=4, position=4, closing=CLOSING)
    assert made.released == 4
    assert made.probed(result(1, "7", 0.99)) is None
    assert (made.ledger.probe, made.state) == (2, State.CLOSING)


def test_the_model_is_faster_than_the_probe() -> None:
    """A trace that ends by itself is not cut any more: once the answer has begun, never."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    made.feed("", (END, ANSWER), 0.0, answering=True)
    assert (made.state, made.released) == (State.ANSWERING, 4)
    assert made.probed(result(1, "7", 0.99)) is None
    made.ended()
    assert kinds(made) == {"reasoning": 3, "marker": 1, "answer": 1, "probe": 2}


@pytest.mark.parametrize("spare", ["observe", "hold_out"])
def test_a_trigger_that_is_not_carried_out(spare: str) -> None:
    """The trace runs on unjudged, and what it goes on to think is the measure."""
    made = session(EAGER, **{spare: True})
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    assert made.probed(result(1, "7", 0.99)) is None
    assert made.released == 3
    assert fed(made, (" Wait", 53), (", Wait, no", 54, 55, 56)) == [None, None]
    made.feed("", (END,), 0.0)
    made.ended()
    assert made.trigger is not None
    assert made.trigger.action == ("observed" if spare == "observe" else "held-out")
    assert (made.trigger.position, made.trigger.after) == (1, 6)
    assert (made.probes, made.stopped, made.released) == (1, False, 6)


@pytest.mark.parametrize("spare", [{}, {"observe": True}])
def test_no_policy_is_asked_behind_its_stop(spare: dict[str, bool]) -> None:
    """One trigger a request: the piece that brought it brings no second."""
    heard: list[Event] = []

    def script(event: Event) -> Any:
        heard.append(event)
        return Stop(type(event).__name__)

    made = session(Scripted(script, Needs(cues=True, interval=1, thoughts=True)), **spare)
    fed(made, ("Wait, a. Wait, b", 50, 51, 52), (" Wait, c", 53, 54), ("d", 55))
    assert [type(event) for event in heard] == [Thought]
    assert made.trigger is not None
    assert made.trigger.stop.reason == "Thought"


def test_a_refused_cut_is_undone() -> None:
    """The main stream goes on as if nothing had been: pieces, ledger and answer."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(made.probed(result(1, "7", 0.99)), Cut)
    made.feed(" bit", (53,), 0.0)
    made.feed("", (END, ANSWER), 0.0, answering=True)
    made.feed("", (ANSWER,), 0.0, answering=True, ending="stop")
    made.refused("resume-failed")
    assert (made.state, made.released) == (State.ANSWERING, 6)
    assert kinds(made) == {"reasoning": 4, "marker": 1, "answer": 2, "probe": 2}
    assert made.trigger is not None
    assert (made.trigger.action, made.muted, made.stopped) == ("refused", "resume-failed", False)


def test_a_trace_that_ends_in_place() -> None:
    """Nothing is taken back: what came meanwhile and comes until the marker is thought, is the
    client's, and was no trace's natural length."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(made.probed(result(1, "7", 0.99)), Cut)
    made.feed(" bit", (53,), 0.0)
    assert made.released == 1
    made.closing_in_place()
    assert (made.state, made.released, made.stopped) == (State.THINKING, 4, True)
    assert fed(made, (" Wait", 54), (" more.", 55)) == [None, None]
    assert made.released == 6
    made.feed("", (END, ANSWER), 0.0, answering=True)
    made.feed("", (ANSWER,), 0.0, answering=True, ending="stop")
    assert (made.state, made.released) == (State.ANSWERING, 8)
    assert kinds(made) == {"reasoning": 6, "marker": 1, "answer": 2, "probe": 2}
    assert made.trigger is not None
    assert (made.trigger.action, made.trigger.position, made.muted) == ("carried-out", 1, None)
    assert made.trigger.after is None


def test_a_trace_that_ended_before_it_was_ended() -> None:
    """The model was faster than the engine's word: its marker and answer stand among what came
    meanwhile."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    made.probed(result(1, "7", 0.99))
    made.feed("", (END, ANSWER), 0.0, answering=True)
    made.closing_in_place()
    assert (made.state, made.released) == (State.ANSWERING, 4)
    assert kinds(made) == {"reasoning": 3, "marker": 1, "answer": 1, "probe": 2}


def test_a_cut_stays_at_the_end() -> None:
    """What was cut off is never released, the end included."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    made.probed(result(1, "7", 0.99))
    made.feed(" bit", (53,), 0.0)
    made.resumed()
    made.ended()
    assert (made.state, made.released) == (State.DONE, 1)


def test_a_stream_that_breaks_off_shows_all_it_had() -> None:
    """No probe and no half cue holds back what there is when it is over."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    made.ended()
    assert made.released == 3


def test_a_cue_at_the_end_of_the_stream_is_released() -> None:
    """Trap 1: a cue that the stream ends on is shown like any text."""
    made = session(EAGER)
    fed(made, ("So.", 50), (" Wait", 51))
    assert made.released == 1
    made.ended()
    assert made.released == 2


@pytest.mark.parametrize("reason", ["internal-error"])
@pytest.mark.parametrize("probing", [True, False])
def test_giving_up(reason: str, probing: bool) -> None:
    """A driver that fails at a probe or a cut lets the stream go on, unjudged."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    if not probing:
        made.probed(result(1, "7", 0.99))
    made.give_up(reason)
    assert (made.state, made.muted, made.released) == (State.THINKING, reason, 3)
    assert fed(made, (" Wait", 53), (", no", 54)) == [None, None]
    assert made.released == 5


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
    made = session(Never())
    made.feed("a", (50,), 0.0)
    made.feed("b", ids, 0.0, answering=answering, ending=ending)
    assert made.state is State.ANSWERING
    assert kinds(made) == expected


def test_a_whole_response_in_one_piece() -> None:
    """Trap 2: marker, trace, marker and answer at once."""
    made = session(EAGER, prompt=(5,))
    made.feed("Wait, 7", (START, 50, 51, END, 99), 0.0, answering=True, ending="stop")
    made.ended()
    assert kinds(made) == {"marker": 2, "reasoning": 2, "answer": 1}
    assert made.released == 1


def test_the_policy_hears_of_the_end() -> None:
    """A trace that ends by itself is told to its policy once."""
    heard: list[Event] = []
    made = session(Scripted(heard.append, Needs()))
    fed(made, ("a", 50), ("b", 51, 52))
    made.feed("", (END,), 7.0)
    made.feed("", (ANSWER,), 8.0, answering=True)
    assert heard == [TraceEnd(3, 7.0)]


@pytest.mark.parametrize(("ending", "known"), [(None, 40), ("stop", 40), ("length", 0)])
def test_a_truncated_trace_is_no_measure_of_length(ending: str | None, known: int) -> None:
    """A trace that the limit ended says nothing of how long it would have been."""

    class Listening(Generous):
        ends: list[int]

        def ended(self, position: int) -> None:
            self.ends.append(position)

    appraiser = Listening()
    appraiser.ends = []
    made = session(Never(), appraiser=appraiser)
    made.feed("a", range(50, 90), 0.0)
    made.feed("", (END,) if ending is None else (), 1.0, ending=ending)
    assert appraiser.ends == ([known] if known else [])


# -- prices ------------------------------------------------------------------------------------


class Dear(Appraiser):
    """No probe is worth its price."""

    def worth(self, position: int, asked: int) -> bool:
        return False


def test_a_probe_that_is_too_dear_is_not_sent() -> None:
    """The policy hears that it failed, the text goes on, nothing is asked."""
    heard: list[Any] = []

    def script(event: Event) -> Any:
        heard.append((type(event).__name__, getattr(event, "reason", None)))
        return Probe() if isinstance(event, Checkpoint) else None

    made = session(Scripted(script), appraiser=Dear())
    assert fed(made, (".", 50), (" Wait", 51), (" a", 52)) == [None] * 3
    assert heard == [("Checkpoint", None), ("ProbeFailed", "price")]
    assert (made.state, made.released, made.probes) == (State.THINKING, 3, 0)


def test_a_second_question_at_a_place_is_not_priced_again() -> None:
    """Gate and trial answer are one look."""
    looks: list[tuple[int, int]] = []

    class Counting(Generous):
        def worth(self, position: int, asked: int) -> bool:
            looks.append((position, asked))
            return True

    made = session(Deer(gap=0), appraiser=Counting())
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    assert isinstance(made.probed(result(1, "7", 0.9, GATE, closed=False)), Ask)
    assert made.probed(result(1, "7", 0.5)) is None
    fed(made, (" Wait", 53), (" b", 54))
    assert looks == [(1, 0), (3, 1)]


@pytest.mark.parametrize("certainty", [0.5, 0.99])
def test_the_price_is_measured_whatever_the_probe_says(certainty: float) -> None:
    """A second's probe at a hundred tokens a second costs a hundred tokens, cut or not."""
    appraiser = Appraiser()
    made = session(EAGER, appraiser=appraiser)
    now = 0.0
    for token in range(99):
        now = token * 0.01
        made.feed("x", (token + 50,), now)
    assert isinstance(made.feed(" Wait, so", (7,), 0.99), Ask)
    for step in range(100):
        made.feed("x", (step + 50,), 1.0 + step * 0.01)
    made.probed(result(99, "7", certainty, seconds=1.0, at=1.99))
    assert appraiser.price == pytest.approx(100, rel=0.05)


# -- what goes wrong ---------------------------------------------------------------------------


def _raising(event: Event) -> Any:
    raise RuntimeError("a policy's own fault")


@pytest.mark.parametrize("needs", [Needs(), CUES, THOUGHTS, Needs(interval=1), CUES | THOUGHTS])
@pytest.mark.parametrize(
    "script",
    [
        _raising,
        lambda event: Stop("always"),
        lambda event: Stop("always", 3),
        lambda event: Probe(),
        lambda event: True,
        lambda event: "stop",
        lambda event: Probe() if isinstance(event, TraceEnd) else None,
        lambda event: Stop("late") if isinstance(event, TraceEnd) else None,
        lambda event: Probe() if isinstance(event, Checkpoint) else 1 // 0,
    ],
    ids=[
        "raises",
        "stops",
        "stops-there",
        "probes",
        "true",
        "text",
        "probes-late",
        "stops-late",
        "raises-later",
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, (5,)], ids=["opened", "unopened"])
def test_whatever_a_policy_does_the_stream_goes_on(
    prompt: tuple[int, ...], script: Callable[[Event], Any], needs: Needs
) -> None:
    """Trap 6, and every other: what a policy returns or raises never breaks the response."""
    driver = Driver(session(Scripted(script, needs), prompt=prompt))
    marker = () if START in prompt else (START,)
    tokens = [*marker, 32, 33, 30, 42, 32, 31, 42, 32, END, ANSWER]
    for index, chunk in enumerate(chunks(tokens, [1], "stop")):
        driver.feed(chunk, float(index))
        if driver.asked is not None:
            driver.answer(0.5, float(index))
    if driver.cut is not None:
        driver.resume(2)
    driver.end()


def test_a_policy_that_fails_is_muted() -> None:
    """It is asked no more, its error is kept for the log, and what was held goes out."""
    heard: list[Event] = []

    def script(event: Event) -> Any:
        heard.append(event)
        raise RuntimeError("mine")

    made = session(Scripted(script, Needs(cues=True, interval=1, thoughts=True)))
    fed(made, ("Wait, a", 50, 51), (" Wait, b", 52, 53))
    made.feed("", (END,), 0.0)
    assert (made.muted, str(made.error), len(heard)) == ("policy-error", "mine", 1)
    assert made.released == 3


def test_a_policy_that_fails_at_a_probes_result() -> None:
    """The stream goes on from where it was held."""

    def script(event: Event) -> Any:
        if isinstance(event, ProbeResult):
            raise ValueError("mine")
        return Probe()

    made = session(Scripted(script))
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    assert made.probed(result(1)) is None
    assert (made.state, made.muted, made.released) == (State.THINKING, "policy-error", 3)


@pytest.mark.parametrize("returned", [True, "stop", 0, [], Stop])
def test_what_is_no_command_is_a_policys_error(returned: object) -> None:
    """A command is a Probe or a Stop; anything else is a mistake, and said so."""
    made = session(Scripted(lambda event: returned, THOUGHTS))
    assert made.feed("a", (50,), 0.0) is None
    assert made.muted == "policy-error"
    assert made.error is not None


def test_a_policy_that_cannot_start_is_muted() -> None:
    """A request is not lost to a policy that fails before it has seen anything."""

    class Broken(Never):
        def start(self) -> Any:
            raise OverflowError("mine")

    made = session(Broken())
    fed(made, ("a", 50), (" Wait, b", 51))
    assert (made.muted, made.released) == ("policy-error", 2)


def test_one_probe_is_in_flight_at_a_time() -> None:
    """A policy that asks at every piece gets its first question answered before a second."""
    made = session(Scripted(lambda event: Probe(), Needs(thoughts=True, probes=True)))
    asks = fed(made, ("a", 50), ("b", 51), ("c", 52))
    assert [type(ask) for ask in asks] == [Ask, type(None), type(None)]
    assert made.probes == 1


def test_a_question_at_a_thought_is_about_its_place() -> None:
    """Where the beginning of a cue is held back, the probe is asked before it, and says so."""
    needs = Needs(cues=True, thoughts=True, probes=True)

    def script(event: Event) -> Any:
        return Probe() if isinstance(event, Thought) and event.position == 2 else None

    made = session(Scripted(script, needs))
    assert fed(made, ("a", 50), (" W", 51))[-1] == Ask(Probe(), 1, 1, CLOSING)


def test_the_latest_cue_that_came_beside_a_probe_is_looked_at_next() -> None:
    """A probe that says no is followed by one at the latest of the cues that it kept waiting."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52), (" Hmm", 53), (".", 54), (" Wait", 55))
    fed(made, (" b", 56))
    ask = made.probed(result(1, "7", 0.5))
    assert isinstance(ask, Ask)
    assert (ask.position, ask.kept, made.released) == (5, 5, 5)
    assert made.probed(result(5, "7", 0.5)) is None
    assert (made.state, made.released) == (State.THINKING, 7)
    assert made.probes == 2


def test_a_cue_beside_the_probe_of_another_in_its_piece_is_not_lost() -> None:
    """Of two cues that become certain at once the second waits for the first's probe."""
    made = session(EAGER)
    first = fed(made, (".", 50), (" Wait", 51), (", no. Hmm, so", 52, 53))[-1]
    second = made.probed(result(1, "7", 0.5))
    assert [ask.position for ask in (first, second) if isinstance(ask, Ask)] == [1, 2]


def test_a_cue_that_was_kept_waiting_does_not_outlive_its_trace() -> None:
    """Where the trace ends first, nothing is asked any more."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52), (" Hmm", 53), (".", 54))
    made.feed("", (END, ANSWER), 0.0, answering=True)
    assert made.probed(result(1, "7", 0.5)) is None
    assert made.state is State.ANSWERING


def test_a_late_result_is_counted_and_not_judged() -> None:
    """A result for another place, or for a trace that is over, costs what it cost."""
    made = session(EAGER)
    fed(made, (".", 50), (" Wait", 51), (" a", 52))
    assert made.probed(result(0, "7", 0.99), prefilled=5) is None
    assert (made.state, made.ledger.probe, made.ledger.prefilled) == (State.PROBING, 2, 5)
    assert isinstance(made.probed(result(1, "7", 0.99), prefilled=6), Cut)
    assert made.ledger.prefilled == 11


def test_a_mute_keeps_its_first_reason() -> None:
    """What went wrong first is what is told."""
    made = session(Never())
    made.mute("first")
    made.mute("second")
    assert made.muted == "first"


# -- ends of sentences, paragraphs and steps ----------------------------------------------------

ENDS = Needs(sentences=True, paragraphs=True, probes=True)


def looked(*pieces: str, needs: Needs = ENDS) -> list[tuple[str, int]]:
    """(kind, position) of the checkpoints that a policy is shown of these one-token pieces."""
    seen: list[Checkpoint] = []

    def look(event: Event) -> None:
        if isinstance(event, Checkpoint):
            seen.append(event)

    fed(session(Scripted(look, needs)), *((piece, 30) for piece in pieces))
    return [(event.kind, event.position) for event in seen]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["It is 7", ".", " So"], [("sentence", 2)]),
        (["It is 7", ".", "\n\n", "So"], [("sentence", 2), ("paragraph", 2)]),
        (["It is 7", ".\n\n", "So"], [("sentence", 2), ("paragraph", 2)]),
        (["It is 7. So"], [("sentence", 0)]),  # trap 2: no cut in the middle of a piece
        (["3", ".", "14"], []),
    ],
)
def test_where_ends_are(pieces: list[str], expected: list[tuple[str, int]]) -> None:
    """Behind the text that ended, before the space that follows, where the pieces allow it."""
    assert looked(*pieces) == expected


def test_only_the_ends_that_are_needed() -> None:
    """A policy is shown what it asked for."""
    pieces = ("So", ".", "\n\n", "Wait", ",")
    assert looked(*pieces, needs=Needs(paragraphs=True)) == [("paragraph", 2)]
    assert looked(*pieces, needs=Needs(sentences=True, cues=True)) == [("sentence", 2), ("cue", 3)]


def test_a_cut_at_the_end_of_a_sentence() -> None:
    """The space behind it is held until the next text begins, and is not kept."""
    made = session(Scripted(lambda e: Stop("x", 2) if isinstance(e, Checkpoint) else None, ENDS))
    assert fed(made, ("It is 7", 30), (".", 31), ("\n\n", 32)) == [None] * 3
    assert made.released == 2
    assert fed(made, ("Wait", 33)) == [Cut(2, 2, CLOSING)]
    assert kinds(made) == {"reasoning": 2, "closing": 3, "wasted": 2}


@pytest.mark.parametrize(
    ("probe", "closing", "ending"),
    [
        (Probe(closing=False, ending=True), (), CLOSING[:2]),
        (Probe(ending=True), CLOSING, CLOSING[:2]),
        (Probe(inducer=""), CLOSING, ()),
    ],
)
def test_what_a_probe_asks_at(
    probe: Probe, closing: tuple[int, ...], ending: tuple[int, ...]
) -> None:
    """The trace as it runs or closed, and the ids that would end it there."""
    made = session(Scripted(lambda e: probe if isinstance(e, Checkpoint) else None, ENDS))
    asked = fed(made, ("It is 7", 30), (".", 31), (" So", 32))[-1]
    assert asked == Ask(probe, 2, 2, closing, ending)


def test_a_probe_may_take_more_than_it_shows() -> None:
    """What was scored beside the drawn token is in the ledger too."""
    made = session(EAGER)
    ask = fed(made, ("So ", 30), ("Wait", 31), (",", 32))[-1]
    assert isinstance(ask, Ask)
    drawn = result(ask.position, "7", 0.1, ask.probe)
    made.probed(drawn, decoded=9)
    assert made.ledger.probe == 9


def test_log_probabilities_reach_the_policy() -> None:
    """As the driver told them, one sequence a token."""
    seen: list[Event] = []
    made = session(Scripted(seen.append, THOUGHTS))
    made.feed("so", [30, 31], 1.0, logprobs=[[-0.1, -3.0], [-0.2]])
    assert seen == [Thought("so", (30, 31), 2, 1.0, ((-0.1, -3.0), (-0.2,)))]


# -- texts that are put into a trace ------------------------------------------------------------

AT_LEAST = Budget(min=9)
WAIT, WAIT_ON_NEWLINE = Said("\nWait", (22, 23)), Said("Wait", (23,))


@pytest.mark.parametrize(
    ("text", "said"), [("It is 7.", WAIT), ("It is 7.\n", WAIT_ON_NEWLINE), ("", WAIT_ON_NEWLINE)]
)
def test_a_trace_that_ends_too_soon_goes_on(text: str, said: Said) -> None:
    """In place of the end marker a text is put, on a line of its own."""
    made = session(AT_LEAST)
    fed(made, ("\n", 29), *([(text, 30)] if text else []))
    kept = 2 if text else 1
    assert fed(made, ("", END)) == [Reopen(kept, kept, kept, said)]
    assert (made.state, made.waiting, made.released) == (State.REOPENING, True, kept)


def test_what_comes_behind_it_is_the_trace() -> None:
    """What the model said behind its own end is wasted; the rest counts as one trace."""
    made = session(AT_LEAST)
    fed(made, ("So", 30), ("", END), ("7", 99))
    assert made.reopened(1.0) is None
    assert made.generated == [30, 22, 23]
    assert made.released == 2
    fed(made, (", no", 31))
    assert (made.state, made.released, made.extended) == (State.THINKING, 3, 1)
    assert kinds(made) == {"reasoning": 4, "wasted": 2}


def test_it_may_end_for_good() -> None:
    """After ``waits`` times, or when it is long enough, the model's own end stands."""
    made = session(Budget(min=9, waits=1))
    fed(made, ("So", 30), ("", END))
    made.reopened(1.0)
    assert fed(made, ("", END)) == [None]
    assert made.state is State.ANSWERING
    long = session(AT_LEAST)
    assert fed(long, ("So", *range(30, 39)), ("", END)) == [None] * 2


def test_a_refused_extension_is_undone() -> None:
    """The model's own end comes after all, and nothing is counted twice or lost."""
    made = session(AT_LEAST)
    fed(made, ("So", 30), ("", END))
    made.feed("", [99], 1.0, answering=True)
    made.refused("resume-failed")
    assert (made.state, made.released, made.muted) == (State.ANSWERING, 3, "resume-failed")
    assert made.generated == [30, END]
    assert kinds(made) == {"reasoning": 1, "marker": 1, "answer": 1}


def test_waste_of_an_earlier_stream_stays() -> None:
    """A cut that is refused after an extension gives back its own waste alone."""
    policy = Scripted(
        lambda e: Extend() if isinstance(e, Closing) else Stop("x") if "!" in str(e) else None,
        Needs(thoughts=True, extends=True),
    )
    made = session(policy)
    fed(made, ("So", 30), ("", END), ("7", 99))
    made.reopened(1.0)
    assert isinstance(fed(made, ("!", 31))[0], Cut)
    fed(made, ("x", 32))
    made.refused("resume-failed")
    assert kinds(made) == {"reasoning": 5, "wasted": 2}


@pytest.mark.parametrize("spare", [{"observe": True}, {"hold_out": True}])
def test_nothing_is_extended_that_is_only_watched(spare: dict[str, bool]) -> None:
    """In observe mode and in the held-out arm the model's own end stands."""
    assert fed(session(AT_LEAST, **spare), ("So", 30), ("", END)) == [None] * 2


def test_an_extension_in_the_middle_of_a_character() -> None:
    """What brought no text yet is not kept."""
    made = session(AT_LEAST)
    fed(made, ("So", 30), ("", 43))
    assert fed(made, ("", END)) == [Reopen(1, 1, 1, WAIT)]
    made.reopened(1.0)
    assert kinds(made) == {"reasoning": 3, "wasted": 2}


def test_a_stream_with_another_bias() -> None:
    """All that was decoded stays, and what comes behind it until the new stream runs is wasted."""
    made = session(Tilt(slope=1000, every=2))
    assert fed(made, ("So", 30), (" it", 31)) == [None, Reopen(2, 2, 2, Said(), 3.0)]
    assert fed(made, (" is", 32)) == [None]
    assert made.reopened(1.0) is None
    assert (made.generated, made.released, made.extended) == ([30, 31], 3, 0)
    assert kinds(made) == {"reasoning": 2, "wasted": 1}


def test_no_bias_where_one_only_watches() -> None:
    """In observe mode and in the held-out arm the model is left as it is."""
    policy = Tilt(bias=2, slope=1000, every=1)
    assert session(policy).bias == 2
    for spare in ({"observe": True}, {"hold_out": True}):
        watched = session(policy, **spare)
        assert watched.bias == 0
        assert fed(watched, ("So", 30), (" it", 31)) == [None] * 2


def test_the_policy_sees_what_was_put_in() -> None:
    """It is a piece like any other: counted, and looked at."""
    seen: list[Event] = []

    def look(event: Event) -> Extend | None:
        seen.append(event)
        return Extend() if isinstance(event, Closing) else None

    made = session(Scripted(look, Needs(thoughts=True, extends=True)))
    fed(made, ("So", 30), ("", END))
    made.reopened(2.0)
    assert seen[1:] == [Closing(1, 0.0), Thought("\nWait", (22, 23), 3, 2.0)]


def test_an_end_in_a_composition() -> None:
    """One member that wants it to go on is enough."""
    for policy in (AnyOf((EAGER, AT_LEAST)), AllOf((AT_LEAST, EAGER))):
        assert fed(session(policy), ("So", 30), ("", END))[-1] == Reopen(1, 1, 1, WAIT)


def test_a_probe_that_an_extension_outran() -> None:
    """Its result is counted and not judged, and the next cue is probed again."""
    made = session(AnyOf((EAGER, AT_LEAST)))
    ask = fed(made, ("So ", 30), ("Wait", 31), (",", 32))[-1]
    assert isinstance(ask, Ask)
    assert fed(made, ("", END)) == [Reopen(3, 3, 3, WAIT)]
    made.reopened(1.0)
    assert made.probed(result(ask.position, "7", 0.99, ask.probe)) is None
    asks = [order for order in fed(made, (" no. ", 33), ("Hmm", 34), (",", 35)) if order]
    assert [type(order) for order in asks] == [Ask]


@pytest.mark.parametrize(
    ("prompt", "pieces", "kept"),
    [
        (PROMPT, [("Okay", 30)], 0),
        (PROMPT, [("\n", 29), ("Okay", 30)], 1),
        ((5,), [("", START), ("\n", 29), ("Okay", 30)], 2),
        ((5,), [("\nOkay", START, 29)], 1),
    ],
)
def test_a_trace_that_does_not_begin(prompt: tuple[int, ...], pieces: list, kept: int) -> None:
    """The cut is before the first word; what is said in its place is part of the trace."""
    made = session(NoThinking(), prompt=prompt)
    said = Said("I have finished.", (24, 25, 26))
    opened = START in prompt
    cut = Cut(kept, kept - (not opened), CLOSING, said)
    assert fed(made, *pieces)[-1] == cut
    assert made.ledger.reasoning + made.ledger.marker == kept + 3
    made.refused("resume-failed")
    assert made.ledger.reasoning + made.ledger.marker == sum(len(ids) for _, *ids in pieces)


# -- any of it, at random ----------------------------------------------------------------------


class Chaos:
    """Answers from a list, whatever the event: commands, nonsense and exceptions."""

    name = "chaos"

    def __init__(self, choices: list[int], needs: Needs) -> None:
        self.needs = needs
        self._choices = choices
        self._turn = 0

    def start(self) -> Stopper:
        return self

    def observe(self, event: Event) -> Any:
        self._turn += 1
        choice = self._choices[self._turn % len(self._choices)]
        commands = [None, None, Probe(), GATE, Stop("all"), Stop("here", 1, text="wait")]
        commands += [Extend(), "nonsense"]
        if choice >= len(commands):
            raise RuntimeError("chaos")
        return commands[choice]


_NEEDS = st.builds(
    Needs,
    cues=st.booleans(),
    sentences=st.booleans(),
    paragraphs=st.booleans(),
    interval=st.integers(0, 4),
    thoughts=st.booleans(),
    start=st.booleans(),
    extends=st.booleans(),
).map(lambda needs: needs | Needs(probes=True))
_POLICIES = st.one_of(
    st.sampled_from(
        [
            EAGER,
            Deer(gap=2),
            Convergence(every=3, window=2, min_tokens=0),
            Loop(repeats=2, min_tokens=4),
            Budget(max=5, grace=3),
            Budget(max=9, min=9, waits=2),
            AnyOf((EAGER, Budget(max=9, min=9, waits=2))),
            NoThinking(),
            Tilt(slope=1000, every=3),
            AnyOf((EAGER, Tilt(slope=1000, every=3))),
            DeerPro(inducers=2, gap=0),
            Entropy(alpha=0.9, delta=1.0),
            Margin(1.0),
            AnyOf((Margin(1.0), EAGER)),
            AnyOf((EAGER, Budget(max=6, grace=2))),
            AnyOf((Convergence(every=3, window=2, min_tokens=0), EAGER)),
            AllOf((Convergence(every=2, window=2, min_tokens=0), EAGER)),
            AllOf((AnyOf((EAGER, Budget(max=4, grace=1))), Convergence(every=2, min_tokens=0))),
        ]
    ),
    st.builds(Chaos, st.lists(st.integers(0, 8), min_size=1, max_size=12), _NEEDS),
)
_WORDS = [token for token in VOCABULARY if token not in (START, EOS, 43)]
_TRACES = st.lists(
    st.sampled_from([[token] for token in _WORDS] + [[30, 42], [31, 42], [43, 44]]), max_size=25
).map(lambda parts: [token for part in parts for token in part])


@given(
    policy=_POLICIES,
    trace=_TRACES,
    opened=st.sampled_from(["prompt", "model", "not"]),
    sizes=st.lists(st.integers(1, 4), max_size=6),
    turns=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    finish=st.sampled_from(["answer", "length", "stop", "break"]),
    spare=st.sampled_from([{}, {}, {"observe": True}, {"hold_out": True}]),
    drawn=st.fixed_dictionaries({"apart": st.booleans(), "rescue": st.booleans()}),
)
def test_what_must_always_hold(
    policy: Policy,
    trace: list[int],
    opened: str,
    sizes: list[int],
    turns: list[int],
    finish: str,
    spare: dict[str, bool],
    drawn: dict[str, bool],
) -> None:
    """Traps 2 and 6: under any chunking, policy, probe and refusal, whatever answers are drawn
    where no policy stopped, the driver's checks hold."""
    prompt = PROMPT if opened == "prompt" else (5,)
    driver = Driver(session(policy, prompt=prompt, **spare, **drawn))
    tokens = ([START] if opened == "model" else []) + trace
    tokens += {"answer": [END, ANSWER, ANSWER], "stop": [EOS]}.get(finish, [])
    ending = {"answer": "stop", "length": "length", "stop": "stop", "break": None}[finish]
    left, index = deque(chunks(tokens, sizes, ending)), -1
    while left:
        index += 1
        driver.feed(left.popleft(), float(index))
        turn = turns[index % len(turns)]
        if driver.asked is not None and turn:
            driver.answer([0.99, 0.99, 0.5, None, 0.9][turn - 1], float(index))
        elif driver.reopening is not None and turn > 2 and index < 60:
            driver.reopen(float(index))
            left = deque(chunks(tokens[opened == "model" :], sizes, ending))
        elif (driver.cut or driver.reopening) and turn in (1, 2):
            driver.refuse()
        elif driver.cut is not None and turn in (3, 4):
            driver.resume(turn)
            break
    while driver.reopening is not None or driver.cut is not None:
        if driver.reopening is not None or turns[0] % 2:
            driver.refuse()
        else:
            driver.resume(1)
    driver.end()


@given(
    policy=_POLICIES,
    trace=_TRACES,
    opened=st.booleans(),
    sizes=st.lists(st.integers(1, 4), max_size=6),
    finish=st.sampled_from(["answer", "length", "stop"]),
    drawn=st.fixed_dictionaries({"apart": st.booleans(), "rescue": st.booleans()}),
    patience=st.integers(0, 6),
)
def test_an_engine_that_refuses_all_changes_nothing(
    policy: Policy,
    trace: list[int],
    opened: bool,
    sizes: list[int],
    finish: str,
    drawn: dict[str, bool],
    patience: int,
) -> None:
    """Whatever was to be cut, drawn or extended, and however late the engine said no, the ledger
    is that of the stream alone, and all of it goes out."""
    tokens = [*trace, *{"answer": [END, ANSWER, ANSWER], "stop": [EOS]}.get(finish, [])]
    stream = chunks(tokens, sizes, "length" if finish == "length" else "stop")
    made, alone = (
        session(each, prompt=PROMPT if opened else (5,), **options)
        for each, options in ((policy, drawn), (Never(), {}))
    )
    waited = 0
    for chunk in stream:
        for each in (made, alone):
            each.feed(chunk.text, chunk.ids, 0.0, answering=chunk.answering, ending=chunk.ending)
        waited += made.waiting
        while made.waiting and waited > patience:
            made.refused("resume-failed")
    while made.waiting:
        made.refused("resume-failed")
    assert kinds(made) == kinds(alone)
    assert (made.state, made.released) == (alone.state, alone.released)
    assert made.generated == alone.generated or made.state is State.ANSWERING


@given(trace=_TRACES, sizes=st.lists(st.integers(1, 4), max_size=6))
def test_a_policy_that_never_stops_changes_nothing(trace: list[int], sizes: list[int]) -> None:
    """Trap 2: whatever the chunking, the ledger is the tokens' and nothing is held at the end."""
    made = session(Never(), prompt=(5,))
    for chunk in chunks([START, *trace, END, ANSWER], sizes, "stop"):
        made.feed(chunk.text, chunk.ids, 0.0, answering=chunk.answering, ending=chunk.ending)
        assert made.released == made._fed or not chunk.text
    assert made.released == made._fed
    expected = {"marker": 2, "answer": 1} | ({"reasoning": len(trace)} if trace else {})
    assert kinds(made) == expected


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_the_cut_is_before_the_cue_whatever_the_chunking(sizes: list[int]) -> None:
    """Trap 2: the text that stays never holds the cue, and never less than the pieces before it."""
    tokens = [32, 33, 32, 33, 30, 42, 32, 32, 32, 32]
    driver = Driver(session(EAGER))
    for chunk in chunks(tokens, sizes, None):
        driver.feed(chunk, 0.0)
        if driver.asked is not None:
            driver.answer(0.99, 0.0)
            break
    assert driver.cut is not None
    ends = {sum(driver.sizes[:n]) for n in range(len(driver.sizes) + 1)}
    assert driver.cut.kept == max(end for end in ends if end <= 4)


def test_the_marks_of_the_lab() -> None:
    """The lab's two closings differ, or the tests of their choice would show nothing."""
    assert MARKS.closing != MARKS.closing_on_newline


# -- answers that no trigger asked for ---------------------------------------------------------


def apart(**options: bool) -> Session:
    made = Session(Never(), MARKS, Appraiser(), **options)
    made.opened(PROMPT)
    return made


@pytest.mark.parametrize(
    ("piece", "kept", "edge", "spent"),
    [
        ((END,), 3, 1, {"reasoning": 2, "marker": 1}),
        ((8, END, 9), 4, 2, {"reasoning": 3, "marker": 1, "wasted": 1}),
        ((9,), 2, 0, {"reasoning": 2, "wasted": 1}),
    ],
)
def test_an_answer_apart(
    piece: tuple[int, ...], kept: int, edge: int, spent: dict[str, int]
) -> None:
    """Behind the model's own marker, or before the piece in which an answer begins without one."""
    made = apart(apart=True)
    fed(made, ("a", 7), ("b", 8))
    cut = made.feed("", piece, 0.0, answering=END not in piece)
    assert cut == Cut(kept, spent["reasoning"], (), edge=edge)
    assert made.released == 2
    assert kinds(made) == spent
    made.feed("", (9,), 0.0, answering=True)
    made.resumed()
    made.answered(5)
    assert made.state is State.ANSWERING
    assert (made.stopped, made.rescued) == (False, None)
    assert kinds(made) == spent | {"answer": 5, "wasted": spent.get("wasted", 0) + 1}


def test_an_answer_apart_without_a_trace() -> None:
    """Where nothing is thought the answer is drawn from the prompt."""
    made = Session(Never(), MARKS, Appraiser(), apart=True)
    made.opened((5, START, END))
    assert made.feed("", (9,), 0.0, answering=True) == Cut(0, 0, ())
    assert kinds(made) == {"wasted": 1}


def test_an_answer_apart_that_came_whole() -> None:
    """One that began and ended in the piece that ends the trace is drawn anew as well."""
    made = apart(apart=True, rescue=True)
    fed(made, ("a", 7))
    assert made.feed("", (END, 9, 9), 0.0, answering=True, ending="stop") == Cut(2, 1, (), edge=1)


def test_an_answer_apart_that_is_refused() -> None:
    """The main stream's own answer is the client's, to its last token."""
    made = apart(apart=True)
    fed(made, ("a", 7))
    made.feed("", (END, 9), 0.0, answering=True)
    made.feed("", (9, 9), 0.0, answering=True)
    assert made.refused("no") is None
    assert made.state is State.ANSWERING
    assert made.released == 3
    assert kinds(made) == {"reasoning": 1, "marker": 1, "answer": 3}


@pytest.mark.parametrize(
    ("ending", "ids", "kept", "edge", "spent"),
    [
        ("length", (9,), 2, 1, {"reasoning": 2, "closing": 3}),
        ("stop", (9,), 1, 0, {"reasoning": 1, "closing": 3, "wasted": 1}),
        ("stop", (8, 9), 2, 1, {"reasoning": 2, "closing": 3, "wasted": 1}),
        ("stop", (), 1, 0, {"reasoning": 1, "closing": 3}),
    ],
)
def test_a_rescue(
    ending: str, ids: tuple[int, ...], kept: int, edge: int, spent: dict[str, int]
) -> None:
    """A response that ends within its trace is closed there, less the end of the sequence."""
    made = apart(rescue=True)
    fed(made, ("a", 7))
    cut = made.feed("b" if edge else "", ids, 0.0, ending=ending)
    assert cut == Cut(kept, kept, CLOSING, edge=edge, rescue=ending)
    assert made.waiting
    assert kinds(made) == spent
    assert made.rescued is None
    made.resumed()
    assert (made.rescued, made.stopped) == (ending, False)


def test_a_rescue_behind_a_line() -> None:
    """The closing sequence minds the last piece's own newline."""
    made = apart(rescue=True)
    fed(made, ("a", 7))
    cut = made.feed("b\n", (8,), 0.0, ending="length")
    assert isinstance(cut, Cut)
    assert cut.closing == CLOSING_ON_NEWLINE


@pytest.mark.parametrize(
    "piece",
    [
        {"ending": "length", "answering": True},
        {"ending": "stop", "ids": (END,)},
        {"ending": "content_filter"},
    ],
)
def test_what_needs_no_rescue(piece: dict[str, Any]) -> None:
    """An answer has begun, the trace was closed, or it is not the trace's length that ended it."""
    made = apart(rescue=True)
    fed(made, ("a", 7))
    assert made.feed("", piece.pop("ids", (9,)), 0.0, **piece) is None
    assert made.state is State.ANSWERING


def test_a_rescue_that_is_refused() -> None:
    """The response ends as it would have."""
    made = apart(rescue=True)
    fed(made, ("a", 7))
    made.feed("b", (8,), 0.0, ending="length")
    assert made.refused("no") is None
    assert (made.released, made.rescued, made.ledger.closing) == (2, None, 0)


def test_a_cut_that_is_refused_when_the_trace_has_ended() -> None:
    """The answer apart is asked for then."""
    made = Session(Budget(max=1, grace=0), MARKS, Appraiser(), apart=True)
    made.opened(PROMPT)
    assert isinstance(fed(made, ("a", 7), ("b", 8))[0], Cut)
    made.feed("", (END,), 0.0)
    made.feed("", (9,), 0.0, answering=True)
    assert made.refused("no") == Cut(3, 2, (), edge=1)
    assert made.waiting
