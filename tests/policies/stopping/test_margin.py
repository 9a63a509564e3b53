"""``margin`` stops at a sentence end if closing is about as likely as continuing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from adjourn.policies.events import Probe, Stop
from adjourn.policies.stopping.margin import Margin
from tests.policies.session_helpers import (
    boundary_checkpoint,
    cue_checkpoint,
    interval_checkpoint,
    probe_failed,
    probe_result,
    reasoning_chunk,
)

PROBE = Probe(inducer="", max_tokens=1, close_trace=False, score_end=True)


def reply_to(top: float, end: float, threshold: float = 0.25) -> Any:
    """Its reply if the most probable token and the end have these probabilities."""
    stopper = Margin(threshold).start()
    assert stopper.observe(boundary_checkpoint("sentence", 40)) == PROBE
    return stopper.observe(
        probe_result(
            40,
            " So",
            top,
            PROBE,
            finished=False,
            end_logprob=math.log(end) if end else -9999.0,
        )
    )


@pytest.mark.parametrize(
    ("top", "end", "stops"),
    [
        (0.5, 0.4, True),  # 0.22 nats
        (0.5, 0.38, False),  # 0.27 nats
        (0.5, 0.5, True),  # the model would close now
        (0.9, 0.0, False),
    ],
)
def test_only_a_narrow_margin_stops(top: float, end: float, stops: bool) -> None:
    """The rule is log p(top) - log p(end) <= threshold."""
    assert reply_to(top, end) == (Stop("narrow", 40) if stops else None)


def test_a_threshold_of_zero_stops_only_at_the_models_own_end() -> None:
    """The end must be as probable as any next token."""
    assert reply_to(0.5, 0.5, threshold=0) == Stop("narrow", 40)
    assert reply_to(0.5, 0.49, threshold=0) is None


def test_its_probe_leaves_the_trace_open() -> None:
    """It has neither a closing sequence nor an inducer, so no answer format is needed."""
    assert Margin().needs.inducers == frozenset()
    assert (PROBE.close_trace, PROBE.inducer) == (False, "")


@pytest.mark.parametrize(
    "event",
    [
        cue_checkpoint(9),
        interval_checkpoint(9),
        boundary_checkpoint("paragraph", 9),
        reasoning_chunk("x", 1),
    ],
)
def test_it_probes_at_sentence_ends_only(event: Any) -> None:
    """Other checkpoints and chunks of the trace lead to no probe."""
    assert Margin().start().observe(event) is None


def test_without_log_probabilities_it_never_stops() -> None:
    """Trap 6: a result without the end's log-probability, or a failed probe."""
    stopper = Margin(100).start()
    assert stopper.observe(probe_result(9, "x", 0.9, PROBE)) is None
    assert stopper.observe(probe_failed(9, PROBE)) is None


@pytest.mark.parametrize("threshold", [-0.1, math.nan])
def test_invalid_options_are_refused(threshold: float) -> None:
    """A negative margin is impossible."""
    with pytest.raises(ValueError, match="must"):
        Margin(threshold)
