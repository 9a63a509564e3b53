"""Random engines and policies: properties that every session must have."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.compose import AllOf, AnyOf
from adjourn.policies.events import (
    Embed,
    Event,
    Extend,
    Probe,
    Stop,
)
from adjourn.policies.never import Never
from adjourn.policies.policy import Needs, Policy, Stopper
from adjourn.policies.session.orders import SendProbe
from adjourn.policies.session.states import State
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.convergence import Convergence
from adjourn.policies.stopping.cusum import Cusum
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.deer_pro import DeerPro
from adjourn.policies.stopping.deviation import Deviation
from adjourn.policies.stopping.entropy import Entropy
from adjourn.policies.stopping.loop import Loop
from adjourn.policies.stopping.margin import Margin
from adjourn.policies.stopping.no_thinking import NoThinking
from adjourn.policies.stopping.tilt import Tilt
from adjourn.policies.text.fences import FenceScanner
from adjourn.policies.text.graphemes import ends_mid_grapheme
from tests.policies.session_driver import ANSWER, END, EOS, VOCABULARY, Driver, chunks
from tests.policies.session_helpers import (
    DIALECT,
    EAGER_DEER,
    GATE_PROBE,
    PROMPT,
    START,
    ScriptedPolicy,
    make_session,
    probe_result,
    token_counts,
)


class RandomPolicy:
    """Returns the values of a list, whatever the event: commands, invalid values and exceptions."""

    name = "random"

    def __init__(self, choices: list[int], needs: Needs) -> None:
        self.needs = needs
        self._choices = choices
        self._turn = 0

    def start(self) -> Stopper:
        return self

    def observe(self, event: Event) -> Any:
        self._turn += 1
        choice = self._choices[self._turn % len(self._choices)]
        commands = [
            None,
            Embed("step"),
            Probe(),
            GATE_PROBE,
            Stop("all"),
            Stop("here", 1, text_name="wait"),
        ]
        commands += [Extend(), "nonsense"]
        if choice >= len(commands):
            raise RuntimeError("random")
        return commands[choice]


_NEEDS = st.builds(
    Needs,
    cues=st.booleans(),
    sentences=st.booleans(),
    paragraphs=st.booleans(),
    interval=st.integers(0, 4),
    reasoning_chunks=st.booleans(),
    start=st.booleans(),
    trace_endings=st.booleans(),
).map(lambda needs: needs | Needs(probes=True))
_POLICIES = st.one_of(
    st.sampled_from(
        [
            EAGER_DEER,
            Deer(gap=2),
            Convergence(every=3, window=2, min_tokens=0),
            Loop(repeats=2, min_tokens=4),
            Budget(max=5, grace=3),
            Budget(max=9, min=9, waits=2),
            AnyOf((EAGER_DEER, Budget(max=9, min=9, waits=2))),
            NoThinking(),
            Tilt(slope=1000, every=3),
            AnyOf((EAGER_DEER, Tilt(slope=1000, every=3))),
            DeerPro(inducers=2, gap=0),
            Entropy(alpha=0.9, delta=1.0),
            Margin(1.0),
            AnyOf((Margin(1.0), EAGER_DEER)),
            AnyOf((EAGER_DEER, Budget(max=6, grace=2))),
            AnyOf((Convergence(every=3, window=2, min_tokens=0), EAGER_DEER)),
            AllOf((Convergence(every=2, window=2, min_tokens=0), EAGER_DEER)),
            AllOf(
                (AnyOf((EAGER_DEER, Budget(max=4, grace=1))), Convergence(every=2, min_tokens=0))
            ),
        ]
    ),
    st.builds(RandomPolicy, st.lists(st.integers(0, 8), min_size=1, max_size=12), _NEEDS),
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
    dry_run=st.sampled_from([{}, {}, {"observe_only": True}, {"hold_out": True}]),
    answer_options=st.fixed_dictionaries(
        {"separate_answer": st.booleans(), "rescue": st.booleans()}
    ),
)
def test_the_drivers_invariants_hold(
    policy: Policy,
    trace: list[int],
    opened: str,
    sizes: list[int],
    turns: list[int],
    finish: str,
    dry_run: dict[str, bool],
    answer_options: dict[str, bool],
) -> None:
    """Under any chunking, policy, probe result and refusal, with separate answers and rescues, all
    checks of ``Driver`` pass."""
    prompt = PROMPT if opened == "prompt" else (5,)
    driver = Driver(make_session(policy, prompt=prompt, **dry_run, **answer_options))
    tokens = ([START] if opened == "model" else []) + trace
    tokens += {"answer": [END, ANSWER, ANSWER], "stop": [EOS]}.get(finish, [])
    ending = {"answer": "stop", "length": "length", "stop": "stop", "break": None}[finish]
    left, index = deque(chunks(tokens, sizes, ending)), -1
    while left:
        index += 1
        driver.feed(left.popleft(), float(index))
        turn = turns[index % len(turns)]
        if driver.pending_query is not None and turn:
            driver.deliver_result([0.99, 0.99, 0.5, None, 0.9][turn - 1], float(index))
        elif driver.pending_reopen is not None and turn > 2 and index < 60:
            driver.reopen(float(index))
            left = deque(chunks(tokens[opened == "model" :], sizes, ending))
        elif (driver.pending_cut or driver.pending_reopen) and turn in (1, 2):
            driver.refuse()
        elif driver.pending_cut is not None and turn in (3, 4):
            driver.resume(turn)
            break
    while driver.pending_reopen is not None or driver.pending_cut is not None:
        if driver.pending_reopen is not None or turns[0] % 2:
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
    answer_options=st.fixed_dictionaries(
        {"separate_answer": st.booleans(), "rescue": st.booleans()}
    ),
    patience=st.integers(0, 6),
)
def test_an_engine_that_refuses_every_order_changes_nothing(
    policy: Policy,
    trace: list[int],
    opened: bool,
    sizes: list[int],
    finish: str,
    answer_options: dict[str, bool],
    patience: int,
) -> None:
    """However late it refuses, the ledger is that of the main stream plain, and everything is
    released."""
    tokens = [*trace, *{"answer": [END, ANSWER, ANSWER], "stop": [EOS]}.get(finish, [])]
    stream = chunks(tokens, sizes, "length" if finish == "length" else "stop")
    session, plain = (
        make_session(each, prompt=PROMPT if opened else (5,), **options)
        for each, options in ((policy, answer_options), (Never(), {}))
    )
    waited = 0
    for chunk in stream:
        for each in (session, plain):
            each.feed(
                chunk.text,
                chunk.ids,
                0.0,
                answering=chunk.answering,
                finish_reason=chunk.finish_reason,
            )
        waited += session.is_switching_stream
        while session.is_switching_stream and waited > patience:
            session.on_refused("resume-failed")
    while session.is_switching_stream:
        session.on_refused("resume-failed")
    assert token_counts(session) == token_counts(plain)
    assert (session.state, session.released_chunks) == (plain.state, plain.released_chunks)
    assert session.generated == plain.generated or session.state is State.ANSWERING


@given(trace=_TRACES, sizes=st.lists(st.integers(1, 4), max_size=6))
def test_a_policy_that_never_stops_changes_nothing(trace: list[int], sizes: list[int]) -> None:
    """Under any chunking, the ledger counts the tokens and nothing is held back at the end."""
    session, text = make_session(Never(), prompt=(5,)), ""
    for chunk in chunks([START, *trace, END, ANSWER], sizes, "stop"):
        session.feed(
            chunk.text, chunk.ids, 0.0, answering=chunk.answering, finish_reason=chunk.finish_reason
        )
        text += chunk.text
        complete = chunk.text and not ends_mid_grapheme(text)
        assert session.released_chunks == session.chunk_count or not complete
    assert session.released_chunks == session.chunk_count
    expected = {"marker": 2, "answer": 1} | ({"reasoning": len(trace)} if trace else {})
    assert token_counts(session) == expected


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_the_cut_is_before_the_cue_under_any_chunking(sizes: list[int]) -> None:
    """The kept text ends before the cue, and has all chunks before the one with the cue."""
    tokens = [32, 33, 32, 33, 30, 42, 32, 32, 32, 32]
    driver = Driver(make_session(EAGER_DEER))
    for chunk in chunks(tokens, sizes, None):
        driver.feed(chunk, 0.0)
        if driver.pending_query is not None:
            driver.deliver_result(0.99, 0.0)
            break
    assert driver.pending_cut is not None
    ends = {sum(driver.chunk_sizes[:n]) for n in range(len(driver.chunk_sizes) + 1)}
    assert driver.pending_cut.kept == max(end for end in ends if end <= 4)


def test_the_test_dialects_closing_sequences_differ() -> None:
    """Otherwise the tests of their choice would pass for any choice."""
    assert DIALECT.closing != DIALECT.closing_on_newline


ANSWER_FREE = [
    Margin(1e9),
    Entropy(alpha=0.9, delta=1e9, at="sentence"),
    Cusum(reference=100.0, threshold=0.1, min_tokens=0),
    Deviation(window=1, threshold=0.1, entropy=0.0, min_tokens=0),
]


@given(
    policy=st.sampled_from([*ANSWER_FREE, AnyOf(tuple(ANSWER_FREE))]),
    trace=st.lists(st.sampled_from(_WORDS), max_size=12),
    answer=st.lists(st.sampled_from(["So. ", "Wait", "```py\n", '{"a": "b. ', "\n\n", "x"])),
    late=st.booleans(),
)
def test_nothing_is_cut_after_the_start_of_an_answer_or_tool_call(
    policy: Policy, trace: list[int], answer: list[str], late: bool
) -> None:
    """Policies that need no trial answer never cut into an answer, neither because of its text nor
    because of a late probe result."""
    session = make_session(policy)
    logprobs = ((0.0,),)
    order = None
    for token in trace:
        order = session.feed(VOCABULARY[token], (token,), 0.0, logprobs=logprobs) or order
        while isinstance(order, SendProbe) and not late:
            order = session.on_probe_result(probe_result(order.position, "7", 0.9, order.probe))
    if session.state not in (State.THINKING, State.PROBING):
        return  # stopped before the answer
    session.feed("", (ANSWER,), 0.0, answering=True)
    for text in answer:
        assert session.feed(text, (ANSWER,), 0.0, answering=True, logprobs=logprobs) is None
    if isinstance(order, SendProbe):
        sure = {"top_logprobs": ((0.0,),), "end_logprob": 0.0}
        assert (
            session.on_probe_result(probe_result(order.position, "7", 0.9, order.probe, **sure))
            is None
        )
    assert session.state is State.ANSWERING
    assert session.trigger is None
    assert session.released_chunks == len(trace) + 1 + len(answer)


POSITIONED = [EAGER_DEER, Margin(1.0), Entropy(alpha=0.9, delta=1.0, at="sentence")]
POSITIONED_BY_TOKENS = [Convergence(every=2, window=2, min_tokens=0), Budget(max=4, grace=10_000)]
_FENCED = (32, 33, 30, 42, 45, 47, 34)


@given(
    policy=st.sampled_from(
        [*POSITIONED, *POSITIONED_BY_TOKENS, AnyOf((*POSITIONED, *POSITIONED_BY_TOKENS))]
    ),
    trace=st.lists(st.sampled_from(_FENCED), min_size=8, max_size=40),
    fence=st.sampled_from([45, 47]),
    sizes=st.lists(st.integers(1, 4), max_size=6),
    late=st.integers(0, 3),
)
def test_no_cut_within_a_fence_or_a_string(
    policy: Policy, trace: list[int], fence: int, sizes: list[int], late: int
) -> None:
    """If a policy chooses the position, the kept text has no open code fence and no open string."""
    driver = Driver(make_session(policy))
    trace, waited = [32, fence, *trace], 0
    for step, chunk in enumerate(chunks(trace, sizes, None)):
        driver.feed(chunk, float(step))
        waited = waited + 1 if driver.pending_query is not None else 0
        while driver.pending_query is not None and waited > late:
            driver.deliver_result(0.999, float(step))
        if driver.pending_cut is not None:
            break
    if driver.pending_cut is not None:
        fences = FenceScanner()
        fences.feed("".join(VOCABULARY[token] for token in trace[: driver.pending_cut.kept]), 0)
        assert not fences.is_open


def asks_at(kind: str, probe: Probe) -> ScriptedPolicy:
    """Probes at every checkpoint of one kind, and never stops."""
    needs = Needs(
        cues=kind == "cue",
        sentences=kind == "sentence",
        paragraphs=kind == "paragraph",
        interval=7 if kind == "interval" else 0,
        probes=True,
    )
    return ScriptedPolicy(
        lambda event: probe if getattr(event, "kind", "") == kind else None, needs
    )


KINDS = ("sentence", "cue", "paragraph", "interval")
TEXTS = (" so", " it", ".", " Wait", " Hmm", "\n\n", " 7")


@given(
    st.permutations(KINDS).flatmap(lambda kinds: st.sampled_from([kinds[:2], kinds[:3], kinds])),
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
    st.lists(st.integers(1, 25), min_size=1, max_size=5),
)
def test_kinds_of_checkpoints_take_turns(
    kinds: list[str], texts: list[str], times: list[int]
) -> None:
    """However frequent one kind is and however long probes take, a kind with a checkpoint during
    every probe is passed over at most as often as there are other kinds."""
    probes = {Probe("", n + 1): kind for n, kind in enumerate(kinds)}
    members = tuple(asks_at(kind, probe) for probe, kind in probes.items())
    session = make_session(AnyOf(members))
    seen: list[str] = []  # kinds with a checkpoint during the probe in flight
    passed = dict.fromkeys(kinds, 0)
    in_flight: SendProbe | None = None
    due = 0
    for step in range(600):
        before = dict(session.checkpoints.deferred)
        order = session.feed(texts[step % len(texts)], (50,), float(step))
        if in_flight is not None:
            seen += [
                kind
                for kind, find in session.checkpoints.deferred.items()
                if before.get(kind, 0) != find
            ]
            if step < due:
                continue
            order = session.on_probe_result(
                probe_result(in_flight.position, "7", 0.5, in_flight.probe, at=float(step))
            )
            following = probes[order.probe] if isinstance(order, SendProbe) else None
            for kind in set(seen) - {following}:
                passed[kind] += following is not None
                assert passed[kind] < len(kinds), (kind, passed)
            if following is not None:
                passed[following] = 0
            in_flight, seen = None, []
        if isinstance(order, SendProbe):
            in_flight, due = order, step + times[step % len(times)]
            passed[probes[order.probe]] = 0
