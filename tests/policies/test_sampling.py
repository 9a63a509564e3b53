"""Policies over several traces: what must hold whatever the traces answer, in whatever order."""

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
# What each trace answers, None where it breaks off or has no answer; and who comes next.
ANSWERS = st.lists(st.sampled_from([0, 1, 2, None]), min_size=12, max_size=12)
ORDERS = st.lists(st.integers(0, 1000), min_size=1, max_size=30)


def sampling(specification: str) -> SamplingPolicy:
    policy = parse(specification)
    assert isinstance(policy, SamplingPolicy)
    return policy


@pytest.mark.parametrize("specification", [*VOTING, "first-finish(traces=5)"])
@given(answers=ANSWERS, order=ORDERS)
def test_it_always_comes_to_a_choice(
    specification: str, answers: list[int | None], order: list[int]
) -> None:
    """Of a trace that answered, after no more traces than it may open; never without reason."""
    race = SamplerDriver(sampling(specification), answers)
    choice = race.run(order)
    assert race.opened_count <= 12
    if choice is None:
        assert set(race.shown_labels.values()) <= {None}
        return
    assert answers[choice.trace] is not None
    assert choice.confidence is None or 0 <= choice.confidence <= 1


@pytest.mark.parametrize("specification", VOTING)
@given(answers=ANSWERS, one=ORDERS, other=ORDERS)
def test_the_order_of_answers_does_not_matter(
    specification: str, answers: list[int | None], one: list[int], other: list[int]
) -> None:
    """The same class is chosen, whoever is the faster within a window."""
    policy = sampling(specification)
    choices = [SamplerDriver(policy, answers).run(order) for order in (one, other)]
    labels = [None if c is None else answers[c.trace] for c in choices]
    assert labels[0] == labels[1]


@pytest.mark.parametrize("specification", VOTING)
@given(answers=ANSWERS, order=ORDERS)
def test_the_choice_leads(specification: str, answers: list[int | None], order: list[int]) -> None:
    """No other answer has more votes among those that came, and the votes are told."""
    race = SamplerDriver(sampling(specification), answers)
    choice = race.run(order)
    if choice is not None:
        votes = Counter(label for label in race.shown_labels.values() if label is not None)
        assert votes[answers[choice.trace]] == max(votes.values()) == choice.votes


@given(answers=ANSWERS, order=ORDERS)
def test_it_replays(answers: list[int | None], order: list[int]) -> None:
    """The same events, the same commands."""
    policy = sampling(VOTING[0])
    races = [SamplerDriver(policy, answers) for _ in range(2)]
    for race in races:
        race.run(order)
    assert races[0].log == races[1].log


def test_the_first_to_end_its_thinking_wins() -> None:
    """Not the first to have its whole answer."""
    sampler = sampling("first-finish(traces=3)").start_sampler()
    assert list(sampler.observe(RequestStarted(0.0))) == [OpenTraces(3)]
    assert list(sampler.observe(TraceFailed(0, 1.0))) == []
    assert list(sampler.observe(TraceClosed(2, 50, 2.0))) == [ChooseTrace(2, "first")]


def test_a_unanimous_window_stops() -> None:
    """And one answer apart does not."""
    alike = SamplerDriver(sampling("early-consistency(window=3, max=12)"), [1, 1, 1] + [0] * 9)
    assert alike.run([0]) == ChooseTrace(0, "unanimous", 1.0, 3)
    apart = SamplerDriver(
        sampling("early-consistency(window=3, max=12)"), [1, 1, 2, 1, 1, 1] + [0] * 6
    )
    assert apart.run([0]) == ChooseTrace(0, "unanimous", 5 / 6, 5)
    assert apart.opened_count == 6


def test_a_window_that_is_not_whole_is_not_unanimous() -> None:
    """One that broke off said nothing."""
    race = SamplerDriver(
        sampling("early-consistency(window=3, max=12)"), [1, 1, None, 1, 1, 1] + [0] * 6
    )
    assert race.run([0]) == ChooseTrace(0, "unanimous", 1.0, 5)


def test_nothing_is_opened_behind_a_window_without_an_answer() -> None:
    """An engine that refuses one refuses the next."""
    race = SamplerDriver(sampling("early-consistency(window=3, max=12)"), [None] * 12)
    assert race.run([0]) is None
    assert race.opened_count == 3


def test_a_lead_that_cannot_be_lost_ends_the_vote() -> None:
    """The rest of the last window need not be waited for."""
    race = SamplerDriver(sampling("early-consistency(window=2, max=6)"), [0, 1, 0, 1, 1, 0])
    assert race.run([0]) == ChooseTrace(0, "majority", 0.5, 3)
    race = SamplerDriver(sampling("early-consistency(window=3, max=6)"), [1, 1, 0, 1, 1, 0])
    assert race.run([0]) == ChooseTrace(0, "settled", 0.8, 4)


def test_by_the_papers_beta() -> None:
    """1 - I(0.5; v1 + 1, v2 + 1): one vote 3/4, two against none 7/8, equals a half and more."""
    assert beta_lead_probability([1]) == 0.75
    assert beta_lead_probability([2]) == 0.875
    assert beta_lead_probability([3, 3]) == 0.5
    assert beta_lead_probability([4]) == pytest.approx(0.96875)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_dirichlet_is_more_careful_than_beta(votes: list[int]) -> None:
    """It weighs every answer, so it is never surer; with one answer both say the same."""
    ranked = sorted(votes, reverse=True)
    assert 0 <= dirichlet_lead_probability(ranked) <= beta_lead_probability(ranked) + 1e-4
    assert dirichlet_lead_probability(ranked[:1]) == pytest.approx(
        beta_lead_probability(ranked[:1]), abs=1e-4
    )


@given(st.lists(st.integers(1, 8), min_size=1, max_size=4), st.floats(0.5, 0.99))
def test_control_asks_more_where_answers_are_apart(counts: list[int], target: float) -> None:
    """What it chooses can be opened; a stricter target costs no less."""
    opened = sum(counts)
    window, most = choose_window(counts, target, 40, opened)
    assert 2 <= window <= most <= max(40, opened + 40)
    alike = choose_window([5], 0.9, 40, 5)
    apart = choose_window([2, 2, 1], 0.9, 40, 5)
    assert alike[0] <= apart[0]


@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=40))
def test_a_wager_is_fair(labels: list[int]) -> None:
    """Doubt lies in (0, 1], and an even split leaves it whole."""
    wagers = BettingTest()
    for label in labels:
        wagers.add(label)
    assert 0 < wagers.p_value(labels[0]) <= 1


def test_anytime_errs_as_seldom_as_it_says() -> None:
    """Two answers as likely as each other: a wrong mode is any, so count every certainty; over all
    sequences of 12 fair coins no more than alpha of them ever become certain of the second."""
    count = 0
    for bits in range(2**12):
        wagers = BettingTest()
        for place in range(12):
            wagers.add(bits >> place & 1)
            # An answer that was never seen is refused too, so this is the harder thing.
            if wagers.p_value(1) <= 0.05:
                count += 1
                break
    assert count / 2**12 <= 0.05


def test_anytime_becomes_certain() -> None:
    """Of unanimous traces within ten."""
    race = SamplerDriver(sampling("anytime-consistency(window=2, max=40)"), [0] * 40)
    choice = race.run([0])
    assert choice is not None
    assert choice.reason == "certain"
    assert race.opened_count <= 10


def test_a_hard_question_gets_more_traces_at_first() -> None:
    """By the difficulty that is given, or by the first trace's length."""

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
def test_what_makes_no_sense_is_refused(specification: str) -> None:
    """With a message, as any policy's options are."""
    with pytest.raises(BadPolicy):
        parse(specification)


def test_it_runs_over_a_policy_of_one_trace() -> None:
    """In the spelling of a composition, options behind it; what each trace needs is needed."""
    policy = sampling("early-consistency(any_of(deer, loop), window=3)")
    assert policy.trace_policy == parse("any_of(deer, loop)")
    assert policy.needs == policy.trace_policy.needs
    assert parse("early-consistency", {"window": 3}) == parse("early-consistency(window=3)")


CERTAINTIES = st.lists(st.none() | st.floats(0, 1), min_size=12, max_size=12)


@given(answers=ANSWERS, certainties=CERTAINTIES, order=ORDERS)
def test_the_first_certain_answer_ends_it(
    answers: list[int | None], certainties: list[float | None], order: list[int]
) -> None:
    """Else the class with the largest sum of certainties is chosen, by its surest trace."""
    race = SamplerDriver(
        sampling("self-certainty(window=3, max=12)"), answers, certainties=certainties
    )
    choice = race.run(order)
    if choice is None:
        assert set(race.shown_labels.values()) <= {None}
        return
    assert answers[choice.trace] is not None
    sure = [t for t in race.shown_labels if answers[t] is not None and (certainties[t] or 0) >= 0.8]
    assert sure == ([choice.trace] if choice.reason == "certain" else [])
    weights: dict[int | None, float] = defaultdict(float)
    for trace, label in race.shown_labels.items():
        if label is not None:
            certainty = certainties[trace]
            weights[label] += 0.5 if certainty is None else certainty
    if choice.reason != "certain":
        assert weights[answers[choice.trace]] == pytest.approx(max(weights.values()))


LOWS = st.lists(st.floats(0.1, 20), min_size=12, max_size=12)
GROUP = "group-confidence(warmup=4, batch=2, max=12, percentile=50)"


@given(answers=ANSWERS, lows=LOWS, order=ORDERS)
def test_the_warm_up_sets_the_bar(
    answers: list[int | None], lows: list[float], order: list[int]
) -> None:
    """No trace of it is given up; behind it exactly those below the bar are, and none votes."""
    race = SamplerDriver(sampling(GROUP), answers, lows)
    choice = race.run(order)
    assert race.opened_count <= 12
    assert all(trace >= 4 for trace in race.aborted)
    if choice is None:
        assert {answers[trace] for trace in range(4)} == {None}
        return
    bar = sorted(lows[:4])[2]
    assert all(lows[trace] < bar for trace in race.aborted)
    assert all(lows[trace] >= bar for trace in race.shown_labels if trace >= 4)
    assert answers[choice.trace] is not None


def test_consensus_ends_the_vote() -> None:
    """By weight: two votes that are nearly all of it are enough."""
    lows = [9.0, 0.1, 9.0, 9.0] + [9.0] * 8
    race = SamplerDriver(
        sampling("group-confidence(warmup=4, percentile=25)"), [1, 2, 1, 1] * 3, lows
    )
    choice = race.run([0])
    assert choice is not None
    assert (choice.reason, choice.votes, race.opened_count) == ("consensus", 3, 4)


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=60), st.integers(1, 20))
def test_the_meter_knows_the_lowest_mean(logprobs: list[float], span: int) -> None:
    """As if all windows were looked at anew; of a shorter trace its mean."""
    meter = ConfidenceMeter(Never(), span)
    for position, logprob in enumerate(logprobs, 1):
        meter.observe(ReasoningChunk("x", (1,), position, 0.0, ((logprob,),)))
    confidences = [-logprob for logprob in logprobs]
    windows = [confidences[i : i + span] for i in range(len(confidences) - span + 1)]
    means = [sum(window) / span for window in windows]
    lowest = min(means, default=sum(confidences) / len(confidences))
    assert meter.lowest == pytest.approx(lowest, abs=1e-9)
    assert meter.window_filled == (len(logprobs) >= span)


def test_the_meter_is_the_policy_that_it_stands_around() -> None:
    """Which stops as it would alone, and sees only what it asked for."""
    meter = ConfidenceMeter(parse("budget(max=10, grace=0)"), 4)
    told = [meter.observe(ReasoningChunk("a", (1,), n, 0.0, ((-1.0,),))) for n in range(1, 12)]
    assert any(isinstance(command, Stop) for command in told)
    assert meter.needs.logprobs == 20
