"""Votes over traces that were drawn before: who is told, and what it cost."""

from __future__ import annotations

from adjourn.policies.registry import parse
from adjourn.policies.sampling import SamplingPolicy
from benchmarks.votes import TraceSample, VoteResult, majority_vote, simulate_vote


def voted(policy: str, *samples: TraceSample) -> VoteResult:
    parsed = parse(policy)
    assert isinstance(parsed, SamplingPolicy)
    return simulate_vote(parsed, samples)


def sample(label: int | None, reasoning: int) -> TraceSample:
    return TraceSample(label, label == 0, reasoning, reasoning + 10)


def test_losers_of_a_race_cost_what_they_ran() -> None:
    """As long as the winner thought; the winner all that it decoded."""
    ballot = voted("first-finish(traces=3)", sample(1, 300), sample(0, 100), sample(1, 200))
    assert ballot == VoteResult(correct=True, net_tokens=100 + 110 + 100, trace_count=3)


def test_a_unanimous_window_costs_its_traces() -> None:
    """And no more."""
    alike = [sample(0, 100), sample(0, 200), *[sample(1, 50)] * 4]
    assert voted("early-consistency(window=2, max=6)", *alike) == VoteResult(True, 110 + 210, 2)


def test_a_settled_vote_ends_what_still_runs() -> None:
    """The second window's slow trace is ended when the fast one has settled it."""
    samples = [sample(0, 100), sample(1, 100), sample(0, 100), sample(0, 900)]
    samples[1] = TraceSample(0, True, 100, 110)
    ballot = voted("adaptive-consistency(window=2, max=4, threshold=0.99)", *samples)
    assert ballot == VoteResult(True, 110 * 3 + 110, 4)


def test_the_majority_pays_for_all() -> None:
    """Whatever they say; without an answer nothing is right."""
    samples = [sample(0, 10), sample(1, 10), sample(0, 10)]
    assert majority_vote(samples) == VoteResult(True, 60, 3)
    assert majority_vote([sample(None, 10)]) == VoteResult(False, 20, 1)
    assert voted("early-consistency(window=2, max=4)", *[sample(None, 10)] * 4).correct is False


def test_rewards_are_told_when_they_are_due() -> None:
    """At the goal of the round, and the losers cost what they had decoded by then."""
    worse = TraceSample(1, False, 100, 110, rewards={40: 0.1, 100: 0.9})
    better = TraceSample(0, True, 300, 310, rewards={40: 0.8, 300: 0.2})
    ended = TraceSample(1, False, 30, 40, rewards={30: 0.5})
    ballot = voted("partial-reward(traces=3, tokens=40)", worse, better, ended)
    assert ballot == VoteResult(True, 310 + 40 + 40, 3)


def test_a_trace_that_loses_confidence_costs_no_more() -> None:
    """It is ended where its mean falls below the bar; the warm-up runs on."""
    sure = TraceSample(0, True, 100, 110, lowest_confidences=((64, 9.0),))
    falls = TraceSample(1, False, 500, 510, lowest_confidences=((64, 9.5), (80, 5.0)))
    ballot = voted("group-confidence(warmup=1, batch=1, max=2, consensus=1.0)", sure, falls)
    assert ballot == VoteResult(True, 110, 1)  # one voice is unanimous
    policy = "group-confidence(warmup=2, batch=1, max=3, consensus=1.0)"
    other = TraceSample(1, False, 100, 110, lowest_confidences=((64, 9.0),))
    assert voted(policy, sure, other, falls).net_tokens == 110 + 110 + 80


def test_a_certain_answer_is_told_at_once() -> None:
    """For a token more than an answer that is not asked about."""
    unsure = TraceSample(1, False, 50, 60, certainty=0.1)
    certain = TraceSample(0, True, 100, 110, certainty=0.9)
    ballot = voted("self-certainty(window=2, max=4)", unsure, certain)
    assert ballot == VoteResult(True, 61 + 111, 2)
