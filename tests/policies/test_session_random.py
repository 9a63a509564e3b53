"""A session under anything that an engine and a policy may do, at random."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policies.budget import Budget
from policies.compose import AllOf, AnyOf
from policies.convergence import Convergence
from policies.deer import Deer
from policies.deer_pro import DeerPro
from policies.entropy import Entropy
from policies.events import (
    Embed,
    Event,
    Extend,
    Probe,
    Stop,
)
from policies.loop import Loop
from policies.margin import Margin
from policies.never import Never
from policies.no_thinking import NoThinking
from policies.policy import Needs, Policy, Stopper
from policies.states import State
from policies.tilt import Tilt
from tests.policies.driver import ANSWER, END, EOS, VOCABULARY, Driver, chunks
from tests.policies.lab import (
    EAGER,
    GATE,
    MARKS,
    PROMPT,
    START,
    kinds,
    session,
)


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
        commands = [None, Embed("step"), Probe(), GATE, Stop("all"), Stop("here", 1, text="wait")]
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
