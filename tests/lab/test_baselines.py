"""Baselines, intervals, and what is chosen by them."""

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
def tapes(tmp_path: Path) -> ReplayDataset:
    """Four traces of 100 tokens with cues at 20, 40 and 60; the answers settle at different ones,
    and one trace is wrong in the end."""
    answers = ["777", "677", "667", "665"]
    traces = [
        trace(
            LONG,
            [
                probe_completed(0, "0"),
                *(probe_completed(20 * (i + 1), said) for i, said in enumerate(row)),
            ],
            prompt=str(number),
            answer=f"\\boxed{{{row[-1]}}}",
        )
        for number, row in enumerate(answers)
    ]
    made = ReplayDataset(write_log(tmp_path / "t.jsonl", traces))
    made.resume_seconds = RESUME
    return made


def test_the_five_baselines(tapes: ReplayDataset) -> None:
    """Each at what it costs: thought, closing, answer, and what comes until the answer begins."""
    made = Baselines(tapes)
    tail = len(CLOSING) + 2 + RESUME / SECONDS_PER_TOKEN
    full, none, oracle = made.full_thinking(), made.no_thinking(), made.oracle()
    assert full.correct.tolist() == [1, 1, 1, 0]
    assert full.net_tokens.tolist() == [100 + 1 + 2] * 4
    assert none.correct.tolist() == [0] * 4
    assert none.net_tokens == pytest.approx([tail] * 4)
    assert oracle.correct.tolist() == [1, 1, 1, 0]
    assert oracle.position.tolist() == [20, 40, 60, 60]
    budget = made.budget(45)
    assert budget.correct.tolist() == [1, 1, 0, 0]
    assert budget.net_tokens == pytest.approx([45 + tail] * 4)


def test_a_random_cue_is_an_expectation(tapes: ReplayDataset) -> None:
    """Certain at the first cue, the mean over all of them, or never."""
    made = Baselines(tapes)
    assert made.random_cue(1.0).correct.tolist() == [1, 0, 0, 0]
    assert made.random_cue(1.0).position == pytest.approx([20] * 4)
    assert made.random_cue(0.0).net_tokens == pytest.approx(made.full_thinking().net_tokens)
    assert made.random_cue(0.5).stopped == pytest.approx([1 - 0.5**3] * 4)
    assert made.random_cue(0.5).correct == pytest.approx([1, 0.5, 0.25, 0])


@given(st.floats(0, 120))
def test_rivals_cost_no_more(net: float) -> None:
    """The budget and the random cue are the dearest that cost at most as much, where any does."""
    made = MADE
    for rows, cheapest in (
        (made.budget_at_cost(net), made.budget(0)),
        (made.random_cue_at_cost(net), None),
    ):
        least = (made.random_cue(1.0) if cheapest is None else cheapest).net_tokens.mean()
        assert rows.net_tokens.mean() <= max(net, least) + 1e-6


def _made() -> Baselines:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        traces = [
            trace(LONG[: 40 + 9 * n], [probe_completed(9 * n)], prompt=str(n)) for n in range(5)
        ]
        return Baselines(ReplayDataset(write_log(Path(folder) / "t.jsonl", traces)))


MADE = _made()


def test_samples_of_a_prompt_are_no_new_prompts() -> None:
    """Ten copies of each row leave the interval as wide as it was."""
    rows = np.array([0.0, 1, 1, 0, 1, 1, 1, 1] * 5)
    names = [str(index) for index in range(len(rows))]
    once = ClusterBootstrap(names).mean(rows)
    often = ClusterBootstrap(names * 10).mean(np.tile(rows, 10))
    alone = ClusterBootstrap([str(index) for index in range(len(rows) * 10)]).mean(
        np.tile(rows, 10)
    )
    assert once == often
    assert alone.high - alone.low < (once.high - once.low) / 2


def test_intervals_are_paired() -> None:
    """Rows that move together differ by a constant, surely."""
    rows = np.random.default_rng(1).normal(size=50)
    names = [str(index) for index in range(50)]
    gain = ClusterBootstrap(names).difference(rows + 0.5, rows)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.5, 0.5, 0.5))
    ratio = ClusterBootstrap(names).ratio(2 * np.abs(rows), np.abs(rows))
    assert (ratio.low, ratio.high) == pytest.approx((2, 2))


def test_an_interval_covers_as_often_as_it_says() -> None:
    """Over 300 samples of 60 clusters, about 95 % hold the truth."""
    rng = np.random.default_rng(2)
    names = [str(index // 2) for index in range(120)]
    hits = 0
    for _ in range(300):
        rows = np.repeat(rng.random(60) < 0.7, 2)
        estimate = ClusterBootstrap(names).mean(rows)
        hits += estimate.low <= 0.7 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.99


def outcomes(rights: Sequence[bool], net: int) -> list[Outcome]:
    return [
        Outcome(True, 50, 100, "7", right, "confident", 0.99, net, 4, 2, 1, 0, 0)
        for right in rights
    ]


def test_the_best_is_the_cheapest_that_loses_little(tapes: ReplayDataset) -> None:
    """The whole interval counts, not its middle; a baseline is no setting."""
    judge = PointBuilder(["a", "b", "c", "d"], Baselines(tapes))
    cheap = judge.policy_point("cheap", outcomes([True, False, True, False], 40))
    good = judge.policy_point("good", outcomes([True, True, True, False], 60))
    dear = judge.policy_point("dear", outcomes([True, True, True, True], 90))
    free = judge.baseline_point(Baselines(tapes).oracle())
    points = [dear, cheap, good, free]
    assert select_best(points, 0.01) is good
    assert select_best(points, 1.0) is cheap
    assert select_best([cheap], 0.01) is None
    assert [point.name for point in pareto_front(points)] == ["cheap", "good", "dear"]
    assert (good.crt.value, good.cr) == pytest.approx((60 / 103, 56 / 103))
