"""A probe is sent when what it may bring is more than it costs, both as measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.appraisal import Appraiser


def seasoned(*, token: float = 0.01, probe: float = 1.0, length: int = 200) -> Appraiser:
    """Seconds a token, seconds a checkpoint's probes, tokens a trace: what was measured."""
    appraiser = Appraiser()
    appraiser.decoded(100, 100 * token)
    appraiser.ended(length)
    appraiser.probed(probe, 7, stopped=False)
    return appraiser


def test_nothing_measured_nothing_refused() -> None:
    """Before anything is known a probe costs nothing, even at the first token."""
    appraiser = Appraiser()
    assert appraiser.price == 0.0
    assert all(appraiser.worth(position, 0) for position in (0, 1, 1000))


def test_the_price_is_time_over_time() -> None:
    """A second of probing where a token takes ten milliseconds costs a hundred tokens."""
    assert seasoned().price == pytest.approx(100)


def test_a_probe_must_earn_its_price() -> None:
    """Chance times what is left, against the price: one half of 190 tokens, of 150, of 220."""
    appraiser = seasoned(probe=0.9)
    assert appraiser.worth(10, 0)
    assert not appraiser.worth(50, 0)
    assert appraiser.worth(220, 0)


def test_chances_are_kept_by_ordinal() -> None:
    """A first look that always stops says nothing of the third."""
    appraiser = seasoned(probe=1.6, length=210)
    for _ in range(50):
        appraiser.probed(1.6, 0, stopped=True)
        appraiser.probed(1.6, 2, stopped=False)
    assert appraiser.worth(10, 0)
    assert not appraiser.worth(10, 2)


def test_a_refused_place_is_looked_at_now_and_then() -> None:
    """One in sixteen is probed all the same, so that the estimate can change its mind."""
    appraiser = seasoned(probe=1000)
    looks = [appraiser.worth(10, 0) for _ in range(160)]
    assert looks == ([False] * 15 + [True]) * 10


def test_the_estimate_changes_its_mind() -> None:
    """Cheap probes bring the price down again."""
    appraiser = seasoned(probe=50)
    assert not appraiser.worth(10, 0)
    for _ in range(60):
        appraiser.probed(0.01, 0, stopped=True)
    assert appraiser.worth(10, 0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10), st.booleans()), max_size=30),
    st.integers(0, 5000),
)
def test_nothing_that_is_measured_breaks_it(
    measured: list[tuple[int, float, bool]], position: int
) -> None:
    """No time, no tokens, many of both: a price is a number and worth is an answer."""
    appraiser = Appraiser()
    for tokens, seconds, stopped in measured:
        appraiser.decoded(tokens, seconds)
        appraiser.probed(seconds, tokens, stopped)
        appraiser.ended(tokens)
    assert appraiser.price >= 0.0
    assert appraiser.worth(position, len(measured)) in (True, False)


def test_pieces_without_tokens_measure_nothing() -> None:
    """No division by no tokens."""
    appraiser = Appraiser()
    appraiser.decoded(0, 1.0)
    appraiser.probed(1.0, 0, stopped=False)
    assert appraiser.price == 0.0
