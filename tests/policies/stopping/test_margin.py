"""``margin`` stops at a sentence's end where closing is about as likely as going on."""

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


def judged(top: float, ending: float, threshold: float = 0.25) -> Any:
    """What it says where the next token and the end have these probabilities."""
    stopper = Margin(threshold).start()
    assert stopper.observe(boundary_checkpoint("sentence", 40)) == PROBE
    return stopper.observe(
        probe_result(
            40,
            " So",
            top,
            PROBE,
            finished=False,
            end_logprob=math.log(ending) if ending else -9999.0,
        )
    )


@pytest.mark.parametrize(
    ("top", "ending", "stops"),
    [
        (0.5, 0.4, True),  # 0.22 nats
        (0.5, 0.38, False),  # 0.27 nats
        (0.5, 0.5, True),  # the model would close now
        (0.9, 0.0, False),
    ],
)
def test_only_a_narrow_margin_stops(top: float, ending: float, stops: bool) -> None:
    """The rule is log p(top) - log p(end) <= threshold."""
    assert judged(top, ending) == (Stop("narrow", 40) if stops else None)


def test_a_threshold_of_nothing_waits_for_the_model() -> None:
    """At 0 it stops only where ending is the most probable of all."""
    assert judged(0.5, 0.5, threshold=0) == Stop("narrow", 40)
    assert judged(0.5, 0.49, threshold=0) is None


def test_it_asks_the_running_trace() -> None:
    """Neither the closing sequence nor an inducer stands behind it: no answer format is needed."""
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
def test_it_looks_at_sentences_only(event: Any) -> None:
    """Other checkpoints and pieces of the trace bring no probe."""
    assert Margin().start().observe(event) is None


def test_without_log_probabilities_it_never_stops() -> None:
    """Trap 6: what was not told, or a probe that failed, is no reason to stop."""
    stopper = Margin(100).start()
    assert stopper.observe(probe_result(9, "x", 0.9, PROBE)) is None
    assert stopper.observe(probe_failed(9, PROBE)) is None


@pytest.mark.parametrize("threshold", [-0.1, math.nan])
def test_options_that_make_no_sense(threshold: float) -> None:
    """A negative margin would ask for the impossible."""
    with pytest.raises(ValueError, match="must"):
        Margin(threshold)
