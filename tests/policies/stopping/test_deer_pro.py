"""``deer-pro`` stops if the trial answers of several inducers are all confident."""

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


def reply_at_cue(stopper: Stopper, position: int, confidences: list[float]) -> tuple[Any, int]:
    """Its reply at a cue, and how many trial answers it requested for that."""
    command, requested = stopper.observe(cue_checkpoint(position)), 0
    while isinstance(command, Probe):
        assert command == Probe(INDUCERS[requested])
        command = stopper.observe(probe_result(position, "7", confidences[requested], command))
        requested += 1
    return command, requested


@given(st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_rule(confidences: list[float], alpha: float) -> None:
    """It stops if mean - alpha · mean absolute deviation > threshold, although it skips probes."""
    mean = fmean(confidences)
    score = mean - alpha * fmean(abs(c - mean) for c in confidences)
    stop, requested = reply_at_cue(DeerPro(threshold=0.8, alpha=alpha).start(), 40, confidences)
    if abs(score - 0.8) > 1e-9:  # the geometric mean of one number rounds
        assert (stop is not None) == (score > 0.8)
    if stop is not None:
        assert stop == Stop("confident", 40, pytest.approx(score))
        assert requested == 4


def test_disagreement_counts_against_it() -> None:
    """Three confident answers and a doubtful one: the mean passes, the score does not."""
    confidences = [0.99, 0.99, 0.99, 0.85]
    assert reply_at_cue(DeerPro(alpha=0).start(), 9, confidences)[0] is not None
    assert reply_at_cue(DeerPro().start(), 9, confidences) == (None, 4)


def test_a_doubtful_cue_costs_one_answer() -> None:
    """The other answers are not requested once the mean cannot reach the threshold."""
    assert reply_at_cue(DeerPro().start(), 9, [0.5]) == (None, 1)


def test_one_inducer_is_the_rule_of_deer() -> None:
    """With a single inducer there is no deviation."""
    stop, requested = reply_at_cue(DeerPro(inducers=1).start(), 9, [0.96])
    assert (stop, requested) == (Stop("confident", 9, pytest.approx(0.96)), 1)


def test_an_empty_answer_has_no_confidence() -> None:
    """Trap 4: a lone brace of probability 1 counts as 0."""
    stopper = DeerPro(inducers=1).start()
    stopper.observe(cue_checkpoint(9))
    assert stopper.observe(probe_result(9, "", 1.0, Probe())) is None


def test_a_cue_without_a_stop_is_followed_by_a_pause() -> None:
    """As in ``deer``. A failed probe starts a pause too; a probe that was not sent does not."""
    stopper = DeerPro(gap=10).start()
    assert reply_at_cue(stopper, 0, [0.1]) == (None, 1)
    assert reply_at_cue(stopper, 9, []) == (None, 0)
    assert stopper.observe(cue_checkpoint(10)) == Probe(INDUCERS[0])
    assert stopper.observe(probe_failed(10, Probe(), "price")) is None
    assert stopper.observe(cue_checkpoint(11)) == Probe(INDUCERS[0])
    assert stopper.observe(probe_failed(11, Probe())) is None
    assert stopper.observe(cue_checkpoint(12)) is None


def test_each_cue_starts_with_the_first_inducer() -> None:
    """Answers of an earlier cue do not count."""
    stopper = DeerPro(gap=0).start()
    stopper.observe(cue_checkpoint(0))
    stopper.observe(probe_result(0, "7", 0.99, Probe(INDUCERS[0])))
    stopper.observe(probe_failed(0, Probe(INDUCERS[1])))
    assert reply_at_cue(stopper, 20, [0.99] * 4)[1] == 4


def test_it_probes_at_cues_only() -> None:
    """Other checkpoints lead to no probe."""
    assert DeerPro().start().observe(interval_checkpoint(50)) is None


def test_the_dialects_have_its_inducers() -> None:
    """All built-in dialects; each inducer is different and ends with an open box."""
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
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    """Options for which the rule has no meaning."""
    with pytest.raises(ValueError, match="must"):
        DeerPro(**options)
