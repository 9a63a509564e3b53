"""``utility`` stops when the trial answer has not become more certain for a while."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.policies.events import Probe, Stop
from adjourn.policies.stopping.utility import Utility
from tests.policies.session_helpers import (
    boundary_checkpoint,
    cue_checkpoint,
    probe_failed,
    probe_result,
)

PROBE = Probe(top_logprobs=20)
SURE = (0.0,)


def told(share: float) -> tuple[float, ...]:
    """One token of two, with this probability."""
    return (math.log(share), math.log1p(-share)) if share < 1 else SURE


def stops(policy: Utility, shares: list[float], answer: str = "7") -> int | None:
    """After how many looks it stops, where all of the answer's tokens have these distributions."""
    stopper = policy.start()
    for look, share in enumerate(shares, 1):
        assert stopper.observe(boundary_checkpoint(policy.at, look)) == PROBE
        top = (told(share),) * (len(answer) + 1)
        if (
            stop := stopper.observe(probe_result(look, answer, 0.9, PROBE, top_logprobs=top))
        ) is not None:
            assert stop == Stop("no-gain", look)
            return look
    return None


@given(st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), max_size=20), st.integers(1, 4))
def test_the_rule(shares: list[float], patience: int) -> None:
    """It stops at the first look from which the last ``patience`` brought no new lowest."""
    lows = [share > max(shares[:at], default=0.0) for at, share in enumerate(shares)]
    rest = (n for n in range(patience + 1, len(lows) + 1) if not any(lows[n - patience : n]))
    assert stops(Utility(patience=patience), shares) == next(rest, None)


def test_an_answer_that_grows_surer_is_never_stopped() -> None:
    """Trap 6: as long as thinking helps it goes on."""
    assert stops(Utility(tolerance=0), [1 - 0.4 * 0.9**n for n in range(100)]) is None


def test_a_gain_within_the_tolerance_is_none() -> None:
    """Rounding is not utility."""
    shares = [0.5 + n * 1e-6 for n in range(9)]
    assert stops(Utility(), shares) == 4
    assert stops(Utility(tolerance=0), shares) is None


def test_only_the_answers_own_tokens_count() -> None:
    """What the model would go on to say behind it is no part of it."""
    stopper = Utility(patience=1).start()
    for share, behind in ((0.6, 1.0), (0.7, 0.5)):
        top = (told(share), told(share), told(behind))
        drawn = probe_result(9, "7", 0.9, PROBE, top_logprobs=top)
        assert stopper.observe(drawn) is None
    assert stopper.observe(probe_result(9, "7", 0.9, PROBE, top_logprobs=(told(0.7),) * 2)) == Stop(
        "no-gain", 9
    )


@pytest.mark.parametrize("answer", ["", " "])
def test_no_answer_is_no_look(answer: str) -> None:
    """Trap 4: an empty answer that stays empty is not one that stays as uncertain."""
    assert stops(Utility(patience=1), [0.9] * 9, answer) is None


@pytest.mark.parametrize(
    "event",
    [cue_checkpoint(9), boundary_checkpoint("sentence", 9), probe_failed(9), probe_result(9)],
)
def test_other_events_say_nothing(event: Any) -> None:
    """Nor does a result without distributions, however often."""
    stopper = Utility(patience=1).start()
    assert [stopper.observe(event) for _ in range(9)] == [None] * 9


def test_it_may_look_at_sentences() -> None:
    """Where a trace has no paragraphs."""
    assert Utility(at="sentence").needs.sentences
    assert stops(Utility(at="sentence"), [0.9] * 9) == 4


@pytest.mark.parametrize("options", [{"patience": 0}, {"max_tokens": 0}, {"tolerance": -1}])
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """Patience of nothing is refused."""
    with pytest.raises(ValueError, match="at least"):
        Utility(**options)
