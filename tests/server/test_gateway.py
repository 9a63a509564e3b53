"""What all requests share stays what it was, whatever a client sends."""

from __future__ import annotations

import httpx

from policies.deer import Deer
from server.config import Settings
from server.gateway import Gateway


def made() -> Gateway:
    return Gateway(Settings(), httpx.MockTransport(lambda request: httpx.Response(200)))


def test_what_was_learned_of_a_policy_in_use_is_kept() -> None:
    """A client that tries a thousand thresholds does not make the others' prices forgotten."""
    gateway = made()
    ours = gateway.appraiser("m", Deer())
    for step in range(1, 1000):
        gateway.appraiser("m", Deer(threshold=step / 1001))
        assert gateway.appraiser("m", Deer()) is ours


def test_what_is_kept_is_bounded() -> None:
    """A policy that nobody asked for in a long time is forgotten."""
    gateway = made()
    first = gateway.appraiser("m", Deer(gap=0))
    for gap in range(1, 1000):
        gateway.appraiser("m", Deer(gap=gap))
    assert gateway.appraiser("m", Deer(gap=0)) is not first


def test_models_learn_apart() -> None:
    """A price is one model's under one policy."""
    gateway = made()
    assert gateway.appraiser("a", Deer()) is not gateway.appraiser("b", Deer())
    assert gateway.appraiser("a", Deer()) is gateway.appraiser("a", Deer())
