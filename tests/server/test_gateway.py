"""What all requests share stays what it was, whatever a client sends."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from adjourn.policies.policy import Policy
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.cusum import Cusum
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.deer_pro import DeerPro
from adjourn.policies.stopping.margin import Margin
from adjourn.server.config import Settings
from adjourn.server.engines.capabilities import Capabilities
from adjourn.server.gateway import Gateway
from adjourn.server.upstream.client import Model
from tests.policies.session_helpers import DIALECT


def made() -> Gateway:
    return Gateway(Settings(), httpx.MockTransport(lambda request: httpx.Response(200)))


def test_what_was_learned_of_a_policy_in_use_is_kept() -> None:
    """A client that tries a thousand thresholds does not make the others' prices forgotten."""
    gateway = made()
    ours = gateway.get_cost_model("m", Deer())
    for step in range(1, 1000):
        gateway.get_cost_model("m", Deer(threshold=step / 1001))
        assert gateway.get_cost_model("m", Deer()) is ours


def test_what_is_kept_is_bounded() -> None:
    """A policy that nobody asked for in a long time is forgotten."""
    gateway = made()
    first = gateway.get_cost_model("m", Deer(gap=0))
    for gap in range(1, 1000):
        gateway.get_cost_model("m", Deer(gap=gap))
    assert gateway.get_cost_model("m", Deer(gap=0)) is not first


def test_models_learn_apart() -> None:
    """A price is one model's under one policy."""
    gateway = made()
    assert gateway.get_cost_model("a", Deer()) is not gateway.get_cost_model("b", Deer())
    assert gateway.get_cost_model("a", Deer()) is gateway.get_cost_model("a", Deer())


@pytest.mark.parametrize(
    ("policy", "lack", "why"),
    [
        (Deer(), "token-id probes", "engine-cannot-probe"),
        (Margin(), "log-probabilities of chosen tokens", "engine-cannot-score-endings"),
        (Cusum(), "log-probabilities", "engine-tells-no-logprobs"),
        (Budget(), "resuming from token ids", "engine-cannot-resume"),
        (DeerPro(), "", "dialect-lacks-an-inducer"),
        (DeerPro(inducers=1), "", None),
        (Budget(min=9), "", None),
        (Budget(), "log-probabilities", None),
        (Margin(), "log-probabilities", None),
    ],
)
def test_what_a_policy_needs_is_there_or_it_is_off(
    policy: Policy, lack: str, why: str | None
) -> None:
    """A policy is refused for what it needs itself, by name, and for nothing else."""
    gateway, model = made(), Model("m", None, DIALECT)
    gateway.capabilities = Capabilities("1", {"m": model}, {lack: "off"} if lack else {})
    assert gateway.find_ineligible_reason(policy, model) == why


def test_words_that_the_dialect_does_not_have() -> None:
    """A trace is not extended by words that nobody gave."""
    gateway = made()
    model = Model("m", None, replace(DIALECT, inducers={"answer": (20, 21)}))
    gateway.capabilities = Capabilities("1", {"m": model})
    assert gateway.find_ineligible_reason(Budget(min=9), model) == "dialect-lacks-an-inducer"
    assert gateway.find_ineligible_reason(Deer(), model) is None
