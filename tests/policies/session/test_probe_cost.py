"""A probe is sent if its expected gain exceeds its cost, both as measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.session.probe_cost import ProbeCostModel
from adjourn.policies.session.probe_series import ProbeSeries


def trained_model(*, token: float = 0.01, probe: float = 1.0, length: int = 200) -> ProbeCostModel:
    """A model that has measured: seconds per token, per checkpoint's probes, tokens per trace."""
    cost_model = ProbeCostModel()
    cost_model.record_decoding(100, 100 * token)
    cost_model.record_trace_length(length)
    cost_model.record_probe(probe, 7, stopped=False)
    return cost_model


def test_nothing_is_refused_before_anything_is_measured() -> None:
    """The cost is 0 then, even at the first token."""
    cost_model = ProbeCostModel()
    assert cost_model.cost == 0.0
    assert all(cost_model.should_probe(position, 0) for position in (0, 1, 1000))


def test_the_cost_is_the_probe_time_in_tokens() -> None:
    """A probe of one second costs 100 tokens of ten milliseconds."""
    assert trained_model().cost == pytest.approx(100)


def test_a_probe_is_sent_if_its_gain_exceeds_its_cost() -> None:
    """Stop rate times tokens left, against the cost: one half of 190, of 150, of 220 tokens."""
    cost_model = trained_model(probe=0.9)
    assert cost_model.should_probe(10, 0)
    assert not cost_model.should_probe(50, 0)
    assert cost_model.should_probe(220, 0)


def test_stop_rates_depend_on_the_number_of_earlier_probes() -> None:
    """A first probe that always stops shows nothing about the third."""
    cost_model = trained_model(probe=1.6, length=210)
    for _ in range(50):
        cost_model.record_probe(1.6, 0, stopped=True)
        cost_model.record_probe(1.6, 2, stopped=False)
    assert cost_model.should_probe(10, 0)
    assert not cost_model.should_probe(10, 2)


def test_a_series_is_weighed_with_the_cost_of_all_its_probes() -> None:
    """Three probes of 30 tokens each, against one half of the tokens left."""
    cost_model = trained_model(probe=0.3)
    assert [cost_model.should_probe(10, 0, count) for count in (1, 3, 4)] == [True, True, False]


def count_probes(
    cost_model: ProbeCostModel, series: int, stops_at: int | None, tokens: int = 200
) -> int:
    """How many probes a trace of ``tokens`` gets with a checkpoint every 10 tokens. A probe takes
    0.1 s, a token 0.01 s."""
    trace, count = ProbeSeries(cost_model, series), 0
    for position in range(10, tokens, 10):
        if not trace.should_probe(position):
            continue
        count += 1
        trace.add_probe_time(0.1)
        trace.finish_checkpoint(has_result=True, stopped=count == stops_at)
        cost_model.record_decoding(10, 0.1)
        if count == stops_at:
            return count
    trace.finish()
    cost_model.record_trace_length(tokens)
    return count


def test_a_series_that_stops_traces_keeps_being_probed() -> None:
    """Eight probes that end in a stop are sent for every trace, although the first seven never
    stop. Only the second trace is not probed, before any length is known."""
    cost_model = ProbeCostModel()
    assert [count_probes(cost_model, 8, stops_at=8) for _ in range(200)] == [8, 0, *[8] * 198]
    # Weighed one by one the probes seem worthless; then no trace can be stopped.
    single = ProbeCostModel()
    assert count_probes(single, 1, stops_at=8) == 8
    assert sum(count_probes(single, 1, stops_at=8) for _ in range(200)) < 8 * 200 / 2


def test_a_series_that_never_stops_is_rarely_probed() -> None:
    """Few are started; equally few if the traces are too short for a whole series."""
    cost_model = ProbeCostModel()
    spent = [count_probes(cost_model, 8, stops_at=None) for _ in range(200)]
    assert spent[0] == 19
    assert sum(spent[100:]) / 100 < 2
    short = ProbeCostModel()
    spent = [count_probes(short, 8, stops_at=None, tokens=60) for _ in range(200)]
    assert spent[0] == 5
    assert sum(spent[100:]) / 100 < 2


@given(st.integers(1, 30), st.lists(st.booleans(), max_size=60))
def test_a_series_is_all_or_nothing(series: int, refused: list[bool]) -> None:
    """After its first probe none is refused before its last, whatever the cost is by then."""
    counts: list[int] = []

    class ScriptedModel(ProbeCostModel):
        def should_probe(self, position: int, earlier_probes: int, checkpoints: int = 1) -> bool:
            counts.append(checkpoints)
            return not refused[position]

    trace, made = ProbeSeries(ScriptedModel(), series), 0
    for position, no in enumerate(refused):
        worth = trace.should_probe(position)
        assert worth is (0 < made < series or not no)
        if worth:
            trace.finish_checkpoint(has_result=True, stopped=False)
            made += 1
    assert set(counts) <= {1, series}


def test_one_refused_probe_in_sixteen_is_sent() -> None:
    """So that the estimate can recover."""
    cost_model = trained_model(probe=1000)
    sent = [cost_model.should_probe(10, 0) for _ in range(160)]
    assert sent == ([False] * 15 + [True]) * 10


def test_the_estimate_follows_new_measurements() -> None:
    """Cheap probes lower the cost again."""
    cost_model = trained_model(probe=50)
    assert not cost_model.should_probe(10, 0)
    for _ in range(60):
        cost_model.record_probe(0.01, 0, stopped=True)
    assert cost_model.should_probe(10, 0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10), st.booleans()), max_size=30),
    st.integers(0, 5000),
)
def test_any_measurement_is_accepted(
    measured: list[tuple[int, float, bool]], position: int
) -> None:
    """Zero or many seconds and tokens: the cost is a number and there is a decision."""
    cost_model = ProbeCostModel()
    for tokens, seconds, stopped in measured:
        cost_model.record_decoding(tokens, seconds)
        cost_model.record_probe(seconds, tokens, stopped)
        cost_model.record_trace_length(tokens)
    assert cost_model.cost >= 0.0
    assert cost_model.should_probe(position, len(measured)) in (True, False)


def test_decoding_without_tokens_is_not_measured() -> None:
    """No division by zero."""
    cost_model = ProbeCostModel()
    cost_model.record_decoding(0, 1.0)
    cost_model.record_probe(1.0, 0, stopped=False)
    assert cost_model.cost == 0.0
