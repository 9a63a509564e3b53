"""Hidden states travel as bfloat16 and are read back layer by layer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.evidence.hidden_states import HiddenStates
from tests.policies.readiness_fixtures import make_hidden_states

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_numbers_come_back_but_for_their_last_bits(values: list[float]) -> None:
    """A bfloat16 is a float32 less sixteen bits of its fraction: never further from nought, and by
    less than one part in 128 of itself."""
    told = make_hidden_states(*values, layers=(1,), width=len(values)).at_layers([1])
    for value, read in zip(values, told, strict=True):
        assert abs(read) <= abs(value)
        assert abs(read - value) <= abs(value) / 128 + 1e-38


def test_layers_are_taken_by_their_number() -> None:
    """In the order that is asked for, be it not the engine's."""
    told = make_hidden_states(1, 2, 3, 4, 5, 6, layers=(2, 3, 5), width=2)
    assert list(told.at_layers([5, 2])) == [5.0, 6.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="not in"):
        told.at_layers([4])


def test_what_is_no_whole_state_is_none() -> None:
    with pytest.raises(ValueError, match="another width"):
        HiddenStates((2,), 3, b"\0" * 4)
