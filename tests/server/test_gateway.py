"""The cost models that all requests share."""

from __future__ import annotations

import httpx

from adjourn.policies.stopping.deer import Deer
from adjourn.server.config import Settings
from adjourn.server.gateway import Gateway


def make_gateway() -> Gateway:
    return Gateway(Settings(), httpx.MockTransport(lambda request: httpx.Response(200)))


def test_the_cost_model_of_a_policy_in_use_is_kept() -> None:
    """A client that sends a thousand different thresholds does not displace it."""
    gateway = make_gateway()
    in_use = gateway.get_cost_model("m", Deer())
    for step in range(1, 1000):
        gateway.get_cost_model("m", Deer(threshold=step / 1001))
        assert gateway.get_cost_model("m", Deer()) is in_use


def test_the_number_of_cost_models_is_limited() -> None:
    """The one that was not requested for the longest time is dropped."""
    gateway = make_gateway()
    first = gateway.get_cost_model("m", Deer(gap=0))
    for gap in range(1, 1000):
        gateway.get_cost_model("m", Deer(gap=gap))
    assert gateway.get_cost_model("m", Deer(gap=0)) is not first


def test_each_model_has_its_own_cost_model() -> None:
    gateway = make_gateway()
    assert gateway.get_cost_model("a", Deer()) is not gateway.get_cost_model("b", Deer())
    assert gateway.get_cost_model("a", Deer()) is gateway.get_cost_model("a", Deer())
