"""Hidden states are stored as bfloat16 and read layer by layer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.evidence.hidden_states import HiddenStates
from tests.policies.readiness_fixtures import make_hidden_states

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_numbers_keep_bfloat16_precision(values: list[float]) -> None:
    """A bfloat16 is a float32 without 16 bits of its fraction: never larger in magnitude, and less
    than 1/128 smaller."""
    states = make_hidden_states(*values, layers=(1,), width=len(values)).at_layers([1])
    for value, read in zip(values, states, strict=True):
        assert abs(read) <= abs(value)
        assert abs(read - value) <= abs(value) / 128 + 1e-38


def test_layers_are_selected_by_number() -> None:
    """In the requested order, whatever the engine's order."""
    states = make_hidden_states(1, 2, 3, 4, 5, 6, layers=(2, 3, 5), width=2)
    assert list(states.at_layers([5, 2])) == [5.0, 6.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="not in"):
        states.at_layers([4])


def test_data_of_the_wrong_length_is_refused() -> None:
    """The length must fit the layers and the width."""
    with pytest.raises(ValueError, match="stated width"):
        HiddenStates((2,), 3, b"\0" * 4)
