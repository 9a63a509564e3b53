"""Detecting capabilities; test_sglang.py detects those of a whole engine."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from adjourn.policies.text.dialect import builtin_dialects
from adjourn.server.engines.adapter import Adapter, ProbeResponse
from adjourn.server.engines.capabilities import _CapabilityCheck
from adjourn.server.engines.detect_dialect import detect_dialect
from tests.server.engines.vocabulary import THINK, Vocabulary


@pytest.mark.parametrize(("end_logprob", "accepted"), [(-7.0, True), (-0.2, False), (0.0, False)])
def test_scores_that_are_all_near_certain_are_rejected(end_logprob: float, accepted: bool) -> None:
    """An engine that reports log-probabilities after sampling filters reports certainty for the
    only allowed token. Two different tokens cannot both be likely at the same position."""

    class Scoring(Vocabulary):
        async def probe(self, *_: object) -> ProbeResponse:
            return ProbeResponse("", ("a",), (-0.1,), False, 1, 1, end_logprob=end_logprob)

    adapter, missing = cast(Adapter, Scoring(THINK)), {}
    dialect = asyncio.run(detect_dialect(adapter, "qwen3", builtin_dialects(), None, [], {}))
    check = _CapabilityCheck(adapter, "m", dialect, [], missing)
    asyncio.run(check._check_probes([1]))
    assert (missing == {}) is accepted
