"""A probe is sent when what it may bring is more than it costs, both as measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.probe_series import ProbeSeries


def trained_model(*, token: float = 0.01, probe: float = 1.0, length: int = 200) -> ProbeCostModel:
    """Seconds a token, seconds a checkpoint's probes, tokens a trace: what was measured."""
    appraiser = ProbeCostModel()
    appraiser.record_decoding(100, 100 * token)
    appraiser.record_trace_length(length)
    appraiser.record_probe(probe, 7, stopped=False)
    return appraiser


def test_nothing_measured_nothing_refused() -> None:
    """Before anything is known a probe costs nothing, even at the first token."""
    appraiser = ProbeCostModel()
    assert appraiser.cost == 0.0
    assert all(appraiser.should_probe(position, 0) for position in (0, 1, 1000))


def test_the_price_is_time_over_time() -> None:
    """A second of probing where a token takes ten milliseconds costs a hundred tokens."""
    assert trained_model().cost == pytest.approx(100)


def test_a_probe_must_earn_its_price() -> None:
    """Chance times what is left, against the price: one half of 190 tokens, of 150, of 220."""
    appraiser = trained_model(probe=0.9)
    assert appraiser.should_probe(10, 0)
    assert not appraiser.should_probe(50, 0)
    assert appraiser.should_probe(220, 0)


def test_chances_are_kept_by_ordinal() -> None:
    """A first look that always stops says nothing of the third."""
    appraiser = trained_model(probe=1.6, length=210)
    for _ in range(50):
        appraiser.record_probe(1.6, 0, stopped=True)
        appraiser.record_probe(1.6, 2, stopped=False)
    assert appraiser.should_probe(10, 0)
    assert not appraiser.should_probe(10, 2)


def test_a_series_must_earn_the_price_of_all_its_looks() -> None:
    """Three looks at thirty tokens each, against one half of what is left."""
    appraiser = trained_model(probe=0.3)
    assert [appraiser.should_probe(10, 0, looks) for looks in (1, 3, 4)] == [True, True, False]


def count_probes(
    appraiser: ProbeCostModel, series: int, stops_at: int | None, tokens: int = 200
) -> int:
    """So many looks one trace of ``tokens`` gets, at every tenth; each takes a tenth of a second,
    and a token a hundredth."""
    trace, count = ProbeSeries(appraiser, series), 0
    for position in range(10, tokens, 10):
        if not trace.should_probe(position):
            continue
        count += 1
        trace.add_probe_time(0.1)
        trace.finish_checkpoint(has_result=True, stopped=count == stops_at)
        appraiser.record_decoding(10, 0.1)
        if count == stops_at:
            return count
    trace.finish()
    appraiser.record_trace_length(tokens)
    return count


def test_a_series_that_pays_is_never_starved() -> None:
    """Eight looks that end in a stop go on being made, though the first seven never stop; only once
    does a trace go to its end, and it is seen how long they are."""
    appraiser = ProbeCostModel()
    assert [count_probes(appraiser, 8, stops_at=8) for _ in range(200)] == [8, 0, *[8] * 198]
    alone = (
        ProbeCostModel()
    )  # each look for itself: they are found worthless, and then none can stop
    assert count_probes(alone, 1, stops_at=8) == 8
    assert sum(count_probes(alone, 1, stops_at=8) for _ in range(200)) < 8 * 200 / 2


def test_a_series_that_pays_nothing_is_given_up() -> None:
    """Where no stop comes of it, few are begun; where traces are too short for it, as few."""
    appraiser = ProbeCostModel()
    spent = [count_probes(appraiser, 8, stops_at=None) for _ in range(200)]
    assert spent[0] == 19
    assert sum(spent[100:]) / 100 < 2
    short = ProbeCostModel()
    spent = [count_probes(short, 8, stops_at=None, tokens=60) for _ in range(200)]
    assert spent[0] == 5
    assert sum(spent[100:]) / 100 < 2


@given(st.integers(1, 30), st.lists(st.booleans(), max_size=60))
def test_a_series_is_all_or_nothing(series: int, refused: list[bool]) -> None:
    """Once its first look is made, none before its last is refused, whatever the price is now."""
    asked: list[int] = []

    class Fickle(ProbeCostModel):
        def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
            asked.append(checkpoints)
            return not refused[position]

    trace, made = ProbeSeries(Fickle(), series), 0
    for position, no in enumerate(refused):
        worth = trace.should_probe(position)
        assert worth is (0 < made < series or not no)
        if worth:
            trace.finish_checkpoint(has_result=True, stopped=False)
            made += 1
    assert set(asked) <= {1, series}


def test_a_refused_place_is_looked_at_now_and_then() -> None:
    """One in sixteen is probed all the same, so that the estimate can change its mind."""
    appraiser = trained_model(probe=1000)
    looks = [appraiser.should_probe(10, 0) for _ in range(160)]
    assert looks == ([False] * 15 + [True]) * 10


def test_the_estimate_changes_its_mind() -> None:
    """Cheap probes bring the price down again."""
    appraiser = trained_model(probe=50)
    assert not appraiser.should_probe(10, 0)
    for _ in range(60):
        appraiser.record_probe(0.01, 0, stopped=True)
    assert appraiser.should_probe(10, 0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10), st.booleans()), max_size=30),
    st.integers(0, 5000),
)
def test_nothing_that_is_measured_breaks_it(
    measured: list[tuple[int, float, bool]], position: int
) -> None:
    """No time, no tokens, many of both: a price is a number and worth is an answer."""
    appraiser = ProbeCostModel()
    for tokens, seconds, stopped in measured:
        appraiser.record_decoding(tokens, seconds)
        appraiser.record_probe(seconds, tokens, stopped)
        appraiser.record_trace_length(tokens)
    assert appraiser.cost >= 0.0
    assert appraiser.should_probe(position, len(measured)) in (True, False)


def test_pieces_without_tokens_measure_nothing() -> None:
    """No division by no tokens."""
    appraiser = ProbeCostModel()
    appraiser.record_decoding(0, 1.0)
    appraiser.record_probe(1.0, 0, stopped=False)
    assert appraiser.cost == 0.0
