"""``deer-pro`` stops where answers drawn in several ways are confident alike."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import Probe, Stop
from adjourn.policies.policy import Stopper
from adjourn.policies.stopping.deer_pro import INDUCERS, DeerPro
from adjourn.policies.text.dialect import builtin_dialects
from tests.policies.session_helpers import (
    cue_checkpoint,
    interval_checkpoint,
    probe_failed,
    probe_result,
)


def judged(stopper: Stopper, position: int, certainties: list[float]) -> tuple[Any, int]:
    """What it says at a cue, and how many answers it drew for that."""
    command, drawn = stopper.observe(cue_checkpoint(position)), 0
    while isinstance(command, Probe):
        assert command == Probe(INDUCERS[drawn])
        command = stopper.observe(probe_result(position, "7", certainties[drawn], command))
        drawn += 1
    return command, drawn


@given(st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_rule(certainties: list[float], alpha: float) -> None:
    """It stops where mean - alpha · mean absolute deviation > threshold, whatever it leaves out."""
    mean = fmean(certainties)
    score = mean - alpha * fmean(abs(c - mean) for c in certainties)
    stop, drawn = judged(DeerPro(threshold=0.8, alpha=alpha).start(), 40, certainties)
    if abs(score - 0.8) > 1e-9:  # the geometric mean of one number rounds
        assert (stop is not None) == (score > 0.8)
    if stop is not None:
        assert stop == Stop("confident", 40, pytest.approx(score))
        assert drawn == 4


def test_disagreement_counts_against_it() -> None:
    """Three sure answers and a doubtful one: the mean passes, the score does not."""
    certainties = [0.99, 0.99, 0.99, 0.85]
    assert judged(DeerPro(alpha=0).start(), 9, certainties)[0] is not None
    assert judged(DeerPro().start(), 9, certainties) == (None, 4)


def test_a_doubtful_cue_costs_one_answer() -> None:
    """What can no longer reach the threshold is not drawn to its end."""
    assert judged(DeerPro().start(), 9, [0.5]) == (None, 1)


def test_one_inducer_is_deers_rule() -> None:
    """With a single text there is no disagreement."""
    stop, drawn = judged(DeerPro(inducers=1).start(), 9, [0.96])
    assert (stop, drawn) == (Stop("confident", 9, pytest.approx(0.96)), 1)


def test_an_empty_answer_is_sure_of_nothing() -> None:
    """Trap 4: a lone brace of probability 1 counts as 0."""
    stopper = DeerPro(inducers=1).start()
    stopper.observe(cue_checkpoint(9))
    assert stopper.observe(probe_result(9, "", 1.0, Probe())) is None


def test_a_no_is_followed_by_a_pause() -> None:
    """As with ``deer``; a failed probe is a no, one that was too dear to be sent is not."""
    stopper = DeerPro(gap=10).start()
    assert judged(stopper, 0, [0.1]) == (None, 1)
    assert judged(stopper, 9, []) == (None, 0)
    assert stopper.observe(cue_checkpoint(10)) == Probe(INDUCERS[0])
    assert stopper.observe(probe_failed(10, Probe(), "price")) is None
    assert stopper.observe(cue_checkpoint(11)) == Probe(INDUCERS[0])
    assert stopper.observe(probe_failed(11, Probe())) is None
    assert stopper.observe(cue_checkpoint(12)) is None


def test_it_begins_anew_at_each_cue() -> None:
    """Answers of an earlier cue are not mixed in."""
    stopper = DeerPro(gap=0).start()
    stopper.observe(cue_checkpoint(0))
    stopper.observe(probe_result(0, "7", 0.99, Probe(INDUCERS[0])))
    stopper.observe(probe_failed(0, Probe(INDUCERS[1])))
    assert judged(stopper, 20, [0.99] * 4)[1] == 4


def test_it_looks_at_cues_only() -> None:
    """Other checkpoints bring no probe."""
    assert DeerPro().start().observe(interval_checkpoint(50)) is None


def test_the_dialects_have_its_texts() -> None:
    """All that come with the project, each ending in the brace that the answer's own closes."""
    for dialect in builtin_dialects().values():
        assert {dialect.inducers[name][-7:] for name in INDUCERS} == {"\\boxed{"}
        assert len({dialect.inducers[name] for name in INDUCERS}) == len(INDUCERS)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1},
        {"inducers": 0},
        {"inducers": 5},
        {"alpha": -1},
        {"max_tokens": 0},
        {"gap": -1},
        {"backoff": 0.5},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    """What the rule has no meaning for is refused."""
    with pytest.raises(ValueError, match="must"):
        DeerPro(**options)
