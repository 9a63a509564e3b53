"""Policies over several traces: invariants for any answers, in any order."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import ReasoningChunk, Stop
from adjourn.policies.never import Never
from adjourn.policies.parallel.adaptive_consistency import (
    beta_lead_probability,
    dirichlet_lead_probability,
)
from adjourn.policies.parallel.anytime_consistency import BettingTest
from adjourn.policies.parallel.confidence_meter import ConfidenceMeter
from adjourn.policies.parallel.early_consistency import choose_window
from adjourn.policies.registry import BadPolicy, parse
from adjourn.policies.sampling import (
    ChooseTrace,
    OpenTraces,
    RequestStarted,
    SamplingPolicy,
    TraceAnswered,
    TraceClosed,
    TraceFailed,
)
from tests.policies.sampler_driver import SamplerDriver

VOTING = (
    "early-consistency(window=3, max=12)",
    "early-consistency(window=3, max=12, target=0.9)",
    "adaptive-consistency(window=3, max=12)",
    "adaptive-consistency(window=3, max=12, prior='dirichlet')",
    "difficulty-adaptive(difficulty=0.5, max=12)",
    "difficulty-adaptive(max=12)",
    "anytime-consistency(window=3, max=12)",
)
# The class of each trace's answer, None if it fails; and which trace ends next.
ANSWERS = st.lists(st.sampled_from([0, 1, 2, None]), min_size=12, max_size=12)
ORDERS = st.lists(st.integers(0, 1000), min_size=1, max_size=30)


def sampling(specification: str) -> SamplingPolicy:
    policy = parse(specification)
    assert isinstance(policy, SamplingPolicy)
    return policy


@pytest.mark.parametrize("specification", [*VOTING, "first-finish(traces=5)"])
@given(answers=ANSWERS, order=ORDERS)
def test_a_trace_with_an_answer_is_chosen(
    specification: str, answers: list[int | None], order: list[int]
) -> None:
    """If there is one; and no more traces are opened than ``max``."""
    driver = SamplerDriver(sampling(specification), answers)
    choice = driver.run(order)
    assert driver.opened_count <= 12
    if choice is None:
        assert set(driver.shown_labels.values()) <= {None}
        return
    assert answers[choice.trace] is not None
    assert choice.confidence is None or 0 <= choice.confidence <= 1


@pytest.mark.parametrize("specification", VOTING)
@given(answers=ANSWERS, one=ORDERS, other=ORDERS)
def test_the_order_of_answers_does_not_change_the_choice(
    specification: str, answers: list[int | None], one: list[int], other: list[int]
) -> None:
    """The same class is chosen, whichever trace of a window is faster."""
    policy = sampling(specification)
    choices = [SamplerDriver(policy, answers).run(order) for order in (one, other)]
    labels = [None if c is None else answers[c.trace] for c in choices]
    assert labels[0] == labels[1]


@pytest.mark.parametrize("specification", VOTING)
@given(answers=ANSWERS, order=ORDERS)
def test_the_chosen_class_has_the_most_votes(
    specification: str, answers: list[int | None], order: list[int]
) -> None:
    """No other class has more, and the command reports their number."""
    driver = SamplerDriver(sampling(specification), answers)
    choice = driver.run(order)
    if choice is not None:
        votes = Counter(label for label in driver.shown_labels.values() if label is not None)
        assert votes[answers[choice.trace]] == max(votes.values()) == choice.votes


@given(answers=ANSWERS, order=ORDERS)
def test_equal_events_give_equal_commands(answers: list[int | None], order: list[int]) -> None:
    """A recorded request replays to the same decisions."""
    policy = sampling(VOTING[0])
    drivers = [SamplerDriver(policy, answers) for _ in range(2)]
    for driver in drivers:
        driver.run(order)
    assert drivers[0].log == drivers[1].log


def test_first_finish_chooses_the_first_trace_that_ends_its_reasoning() -> None:
    """It does not wait for the trace's answer."""
    sampler = sampling("first-finish(traces=3)").start_sampler()
    assert list(sampler.observe(RequestStarted(0.0))) == [OpenTraces(3)]
    assert list(sampler.observe(TraceFailed(0, 1.0))) == []
    assert list(sampler.observe(TraceClosed(2, 50, 2.0))) == [ChooseTrace(2, "first")]


def test_a_unanimous_window_stops() -> None:
    """A window with one different answer does not."""
    agreeing = SamplerDriver(sampling("early-consistency(window=3, max=12)"), [1, 1, 1] + [0] * 9)
    assert agreeing.run([0]) == ChooseTrace(0, "unanimous", 1.0, 3)
    differing = SamplerDriver(
        sampling("early-consistency(window=3, max=12)"), [1, 1, 2, 1, 1, 1] + [0] * 6
    )
    assert differing.run([0]) == ChooseTrace(0, "unanimous", 5 / 6, 5)
    assert differing.opened_count == 6


def test_a_window_with_a_failed_trace_is_not_unanimous() -> None:
    """A failed trace has no answer that could agree."""
    driver = SamplerDriver(
        sampling("early-consistency(window=3, max=12)"), [1, 1, None, 1, 1, 1] + [0] * 6
    )
    assert driver.run([0]) == ChooseTrace(0, "unanimous", 1.0, 5)


def test_no_window_follows_one_without_an_answer() -> None:
    """An engine that refuses all traces of one window would refuse the next too."""
    driver = SamplerDriver(sampling("early-consistency(window=3, max=12)"), [None] * 12)
    assert driver.run([0]) is None
    assert driver.opened_count == 3


def test_a_lead_that_cannot_be_overtaken_ends_the_vote() -> None:
    """The vote does not wait for the rest of the last window."""
    driver = SamplerDriver(sampling("early-consistency(window=2, max=6)"), [0, 1, 0, 1, 1, 0])
    assert driver.run([0]) == ChooseTrace(0, "majority", 0.5, 3)
    driver = SamplerDriver(sampling("early-consistency(window=3, max=6)"), [1, 1, 0, 1, 1, 0])
    assert driver.run([0]) == ChooseTrace(0, "settled", 0.8, 4)


def test_the_beta_probability_is_the_papers() -> None:
    """1 - I(0.5; v1 + 1, v2 + 1): 3/4 for one vote, 7/8 for two against none, 1/2 for a tie."""
    assert beta_lead_probability([1]) == 0.75
    assert beta_lead_probability([2]) == 0.875
    assert beta_lead_probability([3, 3]) == 0.5
    assert beta_lead_probability([4]) == pytest.approx(0.96875)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_dirichlet_is_never_higher_than_beta(votes: list[int]) -> None:
    """It compares with every answer, not only the runner-up; with one answer both are equal."""
    ranked = sorted(votes, reverse=True)
    assert 0 <= dirichlet_lead_probability(ranked) <= beta_lead_probability(ranked) + 1e-4
    assert dirichlet_lead_probability(ranked[:1]) == pytest.approx(
        beta_lead_probability(ranked[:1]), abs=1e-4
    )


@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.floats(0.5, 0.99))
def test_the_control_opens_more_traces_if_answers_differ(counts: list[int], target: float) -> None:
    """The chosen sizes are valid, and the window is no smaller than for equal answers."""
    opened = sum(counts)
    window, most = choose_window(counts, target, 40, opened)
    assert 2 <= window <= most <= max(40, opened + 40)
    agreeing = choose_window([5], 0.9, 40, 5)
    differing = choose_window([2, 2, 1], 0.9, 40, 5)
    assert agreeing[0] <= differing[0]


@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=40))
def test_a_p_value_lies_in_its_range(labels: list[int]) -> None:
    """In (0, 1], after any answers."""
    betting_test = BettingTest()
    for label in labels:
        betting_test.add(label)
    assert 0 < betting_test.p_value(labels[0]) <= 1


def test_anytime_consistency_errs_at_most_as_often_as_alpha() -> None:
    """Two answers are equally likely, so certainty of the second one is an error. Over all
    sequences of 12 fair coins at most a share of alpha ever become certain of it."""
    count = 0
    for bits in range(2**12):
        betting_test = BettingTest()
        for place in range(12):
            betting_test.add(bits >> place & 1)
            # p_value also has to reject an unseen answer, so fewer sequences become certain.
            if betting_test.p_value(1) <= 0.05:
                count += 1
                break
    assert count / 2**12 <= 0.05


def test_anytime_consistency_becomes_certain() -> None:
    """With unanimous traces, within ten of them."""
    driver = SamplerDriver(sampling("anytime-consistency(window=2, max=40)"), [0] * 40)
    choice = driver.run([0])
    assert choice is not None
    assert choice.reason == "certain"
    assert driver.opened_count <= 10


def test_a_hard_question_gets_a_larger_first_window() -> None:
    """By the option ``difficulty``, or by the length of the first trace."""

    def opened(policy: str, *events: Any) -> int:
        sampler = sampling(policy).start_sampler()
        commands = [c for event in (RequestStarted(0.0), *events) for c in sampler.observe(event)]
        return sum(c.count for c in commands if isinstance(c, OpenTraces))

    assert opened("difficulty-adaptive(difficulty=0)") == 2
    assert opened("difficulty-adaptive(difficulty=1)") == 8
    answered = TraceAnswered(0, "1", 0, 100, 1.0), TraceAnswered(0, "1", 0, 9000, 1.0)
    assert opened("difficulty-adaptive", answered[0]) == 2
    assert opened("difficulty-adaptive", answered[1]) == 8


@pytest.mark.parametrize(
    "specification",
    [
        "first-finish(deer, loop)",
        "first-finish(first-finish)",
        "any_of(first-finish, loop)",
        "first-finish(traces=0)",
        "early-consistency(window=9, max=3)",
        "early-consistency(target=1.0)",
        "adaptive-consistency(prior='gamma')",
        "adaptive-consistency(threshold=1.0)",
        "difficulty-adaptive(easy=9)",
        "anytime-consistency(alpha=0.0)",
        "self-certainty(threshold=0.0)",
        "group-confidence(warmup=9, max=3)",
        "group-confidence(percentile=101.0)",
    ],
)
def test_invalid_specifications_are_refused(specification: str) -> None:
    """The error is a BadPolicy, as for any policy."""
    with pytest.raises(BadPolicy):
        parse(specification)


def test_a_sampling_policy_takes_the_policy_of_its_traces() -> None:
    """It is written before the options; its needs are those of the sampling policy."""
    policy = sampling("early-consistency(any_of(deer, loop), window=3)")
    assert policy.trace_policy == parse("any_of(deer, loop)")
    assert policy.needs == policy.trace_policy.needs
    assert parse("early-consistency", {"window": 3}) == parse("early-consistency(window=3)")


CERTAINTIES = st.lists(st.none() | st.floats(0, 1), min_size=12, max_size=12)


@given(answers=ANSWERS, certainties=CERTAINTIES, order=ORDERS)
def test_the_first_certain_answer_is_chosen(
    answers: list[int | None], certainties: list[float | None], order: list[int]
) -> None:
    """If there is none, the class with the largest sum of certainties is chosen."""
    driver = SamplerDriver(
        sampling("self-certainty(window=3, max=12)"), answers, certainties=certainties
    )
    choice = driver.run(order)
    if choice is None:
        assert set(driver.shown_labels.values()) <= {None}
        return
    assert answers[choice.trace] is not None
    certain = [
        t for t in driver.shown_labels if answers[t] is not None and (certainties[t] or 0) >= 0.8
    ]
    assert certain == ([choice.trace] if choice.reason == "certain" else [])
    weights: dict[int | None, float] = defaultdict(float)
    for trace, label in driver.shown_labels.items():
        if label is not None:
            certainty = certainties[trace]
            weights[label] += 0.5 if certainty is None else certainty
    if choice.reason != "certain":
        assert weights[answers[choice.trace]] == pytest.approx(max(weights.values()))


LOWEST = st.lists(st.floats(0.1, 20), min_size=12, max_size=12)
GROUP = "group-confidence(warmup=4, batch=2, max=12, percentile=50)"


@given(answers=ANSWERS, lowest=LOWEST, order=ORDERS)
def test_the_warm_up_sets_the_threshold(
    answers: list[int | None], lowest: list[float], order: list[int]
) -> None:
    """No trace of the warm-up is aborted; later exactly those below the threshold are."""
    driver = SamplerDriver(sampling(GROUP), answers, lowest)
    choice = driver.run(order)
    assert driver.opened_count <= 12
    assert all(trace >= 4 for trace in driver.aborted)
    if choice is None:
        assert {answers[trace] for trace in range(4)} == {None}
        return
    threshold = sorted(lowest[:4])[2]
    assert all(lowest[trace] < threshold for trace in driver.aborted)
    assert all(lowest[trace] >= threshold for trace in driver.shown_labels if trace >= 4)
    assert answers[choice.trace] is not None


def test_consensus_ends_the_vote() -> None:
    """The votes count by weight: one with little weight does not prevent it."""
    lowest = [9.0, 0.1, 9.0, 9.0] + [9.0] * 8
    driver = SamplerDriver(
        sampling("group-confidence(warmup=4, percentile=25)"), [1, 2, 1, 1] * 3, lowest
    )
    choice = driver.run([0])
    assert choice is not None
    assert (choice.reason, choice.votes, driver.opened_count) == ("consensus", 3, 4)


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=60), st.integers(1, 20))
def test_the_meter_finds_the_lowest_mean(logprobs: list[float], window: int) -> None:
    """As computed from all windows; of a shorter trace, its mean."""
    meter = ConfidenceMeter(Never(), window)
    for position, logprob in enumerate(logprobs, 1):
        meter.observe(ReasoningChunk("x", (1,), position, 0.0, ((logprob,),)))
    confidences = [-logprob for logprob in logprobs]
    windows = [confidences[i : i + window] for i in range(len(confidences) - window + 1)]
    means = [sum(values) / window for values in windows]
    lowest = min(means, default=sum(confidences) / len(confidences))
    assert meter.lowest == pytest.approx(lowest, abs=1e-9)
    assert meter.window_filled == (len(logprobs) >= window)


def test_the_meter_acts_as_the_policy_that_it_wraps() -> None:
    """It stops when that policy stops, and adds log-probabilities to its needs."""
    meter = ConfidenceMeter(parse("budget(max=10, grace=0)"), 4)
    commands = [meter.observe(ReasoningChunk("a", (1,), n, 0.0, ((-1.0,),))) for n in range(1, 12)]
    assert any(isinstance(command, Stop) for command in commands)
    assert meter.needs.logprobs == 20
