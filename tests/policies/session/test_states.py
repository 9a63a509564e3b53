"""The transition table: its documentation matches it, and every state can be reached."""

from __future__ import annotations

import re

from adjourn.policies.session import states as module
from adjourn.policies.session.states import TRANSITIONS, State


def test_the_documented_table_is_the_table_in_force() -> None:
    """The table in the module's docstring has the same rows as ``TRANSITIONS``."""
    rows = re.findall(r"^    (\w+) +(\S+(?: \S+)*)  +(\w+)(?:  |$)", module.__doc__ or "", re.M)
    written = {row for row in rows if row[0] not in ("state", "any")}
    expected = {
        (state.value, signal.value, after.value)
        for state, row in TRANSITIONS.items()
        for signal, after in row.items()
        if signal.value != "end"
    }
    assert written == expected
    assert ("any", "end", "done") in rows
    assert {row[module.Input.END] for row in TRANSITIONS.values()} == {State.DONE}


def test_every_state_can_be_reached() -> None:
    """From ``opening``, along rows of the table."""
    reached = {State.OPENING}
    for _ in State:
        reached |= {after for state in reached for after in TRANSITIONS[state].values()}
    assert reached == set(State)
