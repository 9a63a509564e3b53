"""Why a request cannot run under a policy."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace

import httpx
import pytest

from adjourn.policies.policy import Policy
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.cusum import Cusum
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.deer_pro import DeerPro
from adjourn.policies.stopping.margin import Margin
from adjourn.server import eligibility
from adjourn.server.config import Settings
from adjourn.server.eligibility import Backends, find_ineligible_reason
from adjourn.server.engines.capabilities import Capabilities
from adjourn.server.engines.vllm import VLLM
from adjourn.server.upstream.client import EngineClient, Model
from tests.policies.session_helpers import DIALECT


def make_backends(model: Model, *missing: str) -> Backends:
    """A vLLM that serves ``model`` and lacks the capabilities ``missing``; no auxiliary models."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    adapter = VLLM(EngineClient(Settings(), transport))
    capabilities = Capabilities("1", {model.id: model}, dict.fromkeys(missing, "off"))
    return Backends(adapter, capabilities, has_embedder=False, has_reward_scorer=False)


@pytest.mark.parametrize(
    ("policy", "missing", "reason"),
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
def test_a_policy_is_ineligible_only_if_a_capability_that_it_needs_is_missing(
    policy: Policy, missing: str, reason: str | None
) -> None:
    model = Model("m", None, DIALECT)
    backends = make_backends(model, *([missing] if missing else []))
    assert find_ineligible_reason(backends, policy, model) == reason


def test_a_policy_is_ineligible_if_the_dialect_lacks_a_text_that_it_inserts() -> None:
    """``budget(min=…)`` extends a trace with an inducer that this dialect does not define."""
    model = Model("m", None, replace(DIALECT, inducers={"answer": (20, 21)}))
    backends = make_backends(model)
    assert find_ineligible_reason(backends, Budget(min=9), model) == "dialect-lacks-an-inducer"
    assert find_ineligible_reason(backends, Deer(), model) is None


def test_nothing_is_eligible_before_the_engine_was_examined() -> None:
    model = Model("m", None, DIALECT)
    backends = replace(make_backends(model), capabilities=None)
    assert find_ineligible_reason(backends, Deer(), model) == "unexamined-model"
    assert find_ineligible_reason(make_backends(model), Deer(), None) == "unexamined-model"


def test_the_table_of_reasons_is_complete() -> None:
    """The module's docstring lists the reasons in the order in which they are checked."""
    tree = ast.parse(inspect.getsource(eligibility))
    returned = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Return)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    listed = re.findall(r"^    ([a-z]+(?:-[a-z]+)+)  ", str(eligibility.__doc__), re.MULTILINE)
    assert listed == returned
