"""Baselines, intervals, and the selection of the best setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.lab.baselines import Baselines
from adjourn.lab.intervals import ClusterBootstrap
from adjourn.lab.points import PointBuilder, pareto_front, select_best
from adjourn.lab.replay import Outcome
from adjourn.lab.replay_trace import ReplayDataset
from tests.lab.trace_factory import SECONDS_PER_TOKEN, probe_completed, trace, write_log
from tests.policies.session_helpers import CLOSING

LONG = ["x"] * 100
RESUME = 1.5 * SECONDS_PER_TOKEN


@pytest.fixture
def dataset(tmp_path: Path) -> ReplayDataset:
    """Four traces of 100 tokens with cues at 20, 40 and 60. Their answers settle at different cues,
    and the last trace is wrong."""
    answers = ["777", "677", "667", "665"]
    traces = [
        trace(
            LONG,
            [
                probe_completed(0, "0"),
                *(probe_completed(20 * (i + 1), answer) for i, answer in enumerate(row)),
            ],
            prompt=str(number),
            answer=f"\\boxed{{{row[-1]}}}",
        )
        for number, row in enumerate(answers)
    ]
    dataset = ReplayDataset(write_log(tmp_path / "t.jsonl", traces))
    dataset.resume_seconds = RESUME
    return dataset


def test_scores_of_the_five_baselines(dataset: ReplayDataset) -> None:
    """Net tokens are reasoning, closing, answer, and the tokens until the answer begins."""
    baselines = Baselines(dataset)
    tokens_after_cut = len(CLOSING) + 2 + RESUME / SECONDS_PER_TOKEN
    full, none, oracle = baselines.full_thinking(), baselines.no_thinking(), baselines.oracle()
    assert full.correct.tolist() == [1, 1, 1, 0]
    assert full.net_tokens.tolist() == [100 + 1 + 2] * 4
    assert none.correct.tolist() == [0] * 4
    assert none.net_tokens == pytest.approx([tokens_after_cut] * 4)
    assert oracle.correct.tolist() == [1, 1, 1, 0]
    assert oracle.position.tolist() == [20, 40, 60, 60]
    budget = baselines.budget(45)
    assert budget.correct.tolist() == [1, 1, 0, 0]
    assert budget.net_tokens == pytest.approx([45 + tokens_after_cut] * 4)


def test_a_random_cue_is_an_expectation(dataset: ReplayDataset) -> None:
    """With q = 1 a cut at the first cue, with q = 0 none, otherwise a weighted mean."""
    baselines = Baselines(dataset)
    assert baselines.random_cue(1.0).correct.tolist() == [1, 0, 0, 0]
    assert baselines.random_cue(1.0).position == pytest.approx([20] * 4)
    assert baselines.random_cue(0.0).net_tokens == pytest.approx(
        baselines.full_thinking().net_tokens
    )
    assert baselines.random_cue(0.5).stopped == pytest.approx([1 - 0.5**3] * 4)
    assert baselines.random_cue(0.5).correct == pytest.approx([1, 0.5, 0.25, 0])


@given(st.floats(0, 120))
def test_equal_cost_baselines_cost_no_more(net: float) -> None:
    """The budget and the random cue cost at most the given net tokens, if any setting does."""
    baselines = BASELINES
    for rows, cheapest in (
        (baselines.budget_at_cost(net), baselines.budget(0)),
        (baselines.random_cue_at_cost(net), None),
    ):
        least = (baselines.random_cue(1.0) if cheapest is None else cheapest).net_tokens.mean()
        assert rows.net_tokens.mean() <= max(net, least) + 1e-6


def _make_baselines() -> Baselines:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        traces = [
            trace(LONG[: 40 + 9 * n], [probe_completed(9 * n)], prompt=str(n)) for n in range(5)
        ]
        return Baselines(ReplayDataset(write_log(Path(folder) / "t.jsonl", traces)))


BASELINES = _make_baselines()


def test_more_samples_of_a_prompt_do_not_narrow_an_interval() -> None:
    """Ten copies of each row keep the width, unless each copy is a cluster of its own."""
    rows = np.array([0.0, 1, 1, 0, 1, 1, 1, 1] * 5)
    names = [str(index) for index in range(len(rows))]
    once = ClusterBootstrap(names).mean(rows)
    often = ClusterBootstrap(names * 10).mean(np.tile(rows, 10))
    independent = ClusterBootstrap([str(index) for index in range(len(rows) * 10)]).mean(
        np.tile(rows, 10)
    )
    assert once == often
    assert independent.high - independent.low < (once.high - once.low) / 2


def test_intervals_are_paired() -> None:
    """A constant difference between rows has an interval of width zero."""
    rows = np.random.default_rng(1).normal(size=50)
    names = [str(index) for index in range(50)]
    gain = ClusterBootstrap(names).difference(rows + 0.5, rows)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.5, 0.5, 0.5))
    ratio = ClusterBootstrap(names).ratio(2 * np.abs(rows), np.abs(rows))
    assert (ratio.low, ratio.high) == pytest.approx((2, 2))


def test_intervals_cover_the_truth_as_often_as_they_claim() -> None:
    """About 95 % of 300 intervals over 60 clusters."""
    rng = np.random.default_rng(2)
    names = [str(index // 2) for index in range(120)]
    hits = 0
    for _ in range(300):
        rows = np.repeat(rng.random(60) < 0.7, 2)
        estimate = ClusterBootstrap(names).mean(rows)
        hits += estimate.low <= 0.7 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.99


def outcomes(correct: Sequence[bool], net: int) -> list[Outcome]:
    return [
        Outcome(True, 50, 100, "7", is_correct, "confident", 0.99, net, 4, 2, 1, 0, 0)
        for is_correct in correct
    ]


def test_the_best_setting_is_the_cheapest_within_the_tolerance(dataset: ReplayDataset) -> None:
    """The whole interval counts, not its middle; a baseline is never selected."""
    builder = PointBuilder(["a", "b", "c", "d"], Baselines(dataset))
    cheap = builder.policy_point("cheap", outcomes([True, False, True, False], 40))
    good = builder.policy_point("good", outcomes([True, True, True, False], 60))
    expensive = builder.policy_point("expensive", outcomes([True, True, True, True], 90))
    oracle_point = builder.baseline_point(Baselines(dataset).oracle())
    points = [expensive, cheap, good, oracle_point]
    assert select_best(points, 0.01) is good
    assert select_best(points, 1.0) is cheap
    assert select_best([cheap], 0.01) is None
    assert [point.name for point in pareto_front(points)] == ["cheap", "good", "expensive"]
    assert (good.crt.value, good.cr) == pytest.approx((60 / 103, 56 / 103))
