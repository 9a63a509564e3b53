"""Votes of sampling policies over traces that were sampled before: the result and its cost."""

from __future__ import annotations

from adjourn.policies.registry import parse
from adjourn.policies.sampling import SamplingPolicy
from benchmarks.votes import TraceSample, VoteResult, majority_vote, simulate_vote


def vote(policy: str, *samples: TraceSample) -> VoteResult:
    parsed = parse(policy)
    assert isinstance(parsed, SamplingPolicy)
    return simulate_vote(parsed, samples)


def sample(label: int | None, reasoning: int) -> TraceSample:
    return TraceSample(label, label == 0, reasoning, reasoning + 10)


def test_losers_of_a_race_cost_their_tokens_until_its_end() -> None:
    """Up to the winner's reasoning length; the winner costs all of its tokens."""
    result = vote("first-finish(traces=3)", sample(1, 300), sample(0, 100), sample(1, 200))
    assert result == VoteResult(correct=True, net_tokens=100 + 110 + 100, trace_count=3)


def test_a_unanimous_window_ends_the_vote() -> None:
    """Only its traces are paid for."""
    alike = [sample(0, 100), sample(0, 200), *[sample(1, 50)] * 4]
    assert vote("early-consistency(window=2, max=6)", *alike) == VoteResult(True, 110 + 210, 2)


def test_a_settled_vote_aborts_running_traces() -> None:
    """The fast trace of the second window settles the vote, so the slow one is aborted."""
    samples = [sample(0, 100), sample(1, 100), sample(0, 100), sample(0, 900)]
    samples[1] = TraceSample(0, True, 100, 110)
    result = vote("adaptive-consistency(window=2, max=4, threshold=0.99)", *samples)
    assert result == VoteResult(True, 110 * 3 + 110, 4)


def test_a_majority_vote_pays_for_all_traces() -> None:
    """Without any answer the vote is wrong."""
    samples = [sample(0, 10), sample(1, 10), sample(0, 10)]
    assert majority_vote(samples) == VoteResult(True, 60, 3)
    assert majority_vote([sample(None, 10)]) == VoteResult(False, 20, 1)
    assert vote("early-consistency(window=2, max=4)", *[sample(None, 10)] * 4).correct is False


def test_rewards_are_compared_at_the_end_of_a_round() -> None:
    """The losers cost the tokens that they had decoded by then."""
    worse = TraceSample(1, False, 100, 110, rewards={40: 0.1, 100: 0.9})
    better = TraceSample(0, True, 300, 310, rewards={40: 0.8, 300: 0.2})
    ended = TraceSample(1, False, 30, 40, rewards={30: 0.5})
    result = vote("partial-reward(traces=3, tokens=40)", worse, better, ended)
    assert result == VoteResult(True, 310 + 40 + 40, 3)


def test_a_trace_is_aborted_when_its_confidence_drops() -> None:
    """When its mean falls below the threshold; warm-up traces are not aborted."""
    sure = TraceSample(0, True, 100, 110, lowest_confidences=((64, 9.0),))
    falls = TraceSample(1, False, 500, 510, lowest_confidences=((64, 9.5), (80, 5.0)))
    result = vote("group-confidence(warmup=1, batch=1, max=2, consensus=1.0)", sure, falls)
    assert result == VoteResult(True, 110, 1)  # one trace is unanimous
    policy = "group-confidence(warmup=2, batch=1, max=3, consensus=1.0)"
    other = TraceSample(1, False, 100, 110, lowest_confidences=((64, 9.0),))
    assert vote(policy, sure, other, falls).net_tokens == 110 + 110 + 80


def test_certainty_weights_the_vote() -> None:
    """It costs one more token for each answer."""
    unsure = TraceSample(1, False, 50, 60, certainty=0.1)
    certain = TraceSample(0, True, 100, 110, certainty=0.9)
    result = vote("self-certainty(window=2, max=4)", unsure, certain)
    assert result == VoteResult(True, 61 + 111, 2)
