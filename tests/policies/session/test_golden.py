"""Recorded requests replay to the same decisions, token for token."""

from __future__ import annotations

from typing import Any

import pytest

from adjourn.policies.session.states import State
from tests.golden import races, recordings, replay, replay_race


@pytest.mark.parametrize(("name", "recording"), recordings().items(), ids=list(recordings()))
def test_a_recorded_request_replays(name: str, recording: dict[str, Any]) -> None:
    """Orders, states, released chunks, ledger and trigger are those that were recorded."""
    replayed = replay(recording)
    assert recording["outcome"] == replayed


@pytest.mark.parametrize(("name", "race"), races().items(), ids=list(races()))
def test_a_recorded_race_replays(name: str, race: dict[str, Any]) -> None:
    """A policy over several traces opens, aborts and chooses as it did."""
    assert race["outcome"] == replay_race(race)


def test_the_recordings_cover_all_states() -> None:
    """Together they carry out a cut, refuse one, hold one out and reach every state."""
    outcomes = [recording["outcome"] for recording in recordings().values()]
    actions = {outcome["trigger"]["action"] for outcome in outcomes if outcome["trigger"]}
    states = {state for outcome in outcomes for _, state, _ in outcome["steps"]}
    assert actions == {"carried-out", "refused", "held-out"}
    assert states == {state.value for state in State}
