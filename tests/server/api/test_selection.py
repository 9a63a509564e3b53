"""Selecting the policy and the model of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adjourn.policies.compose import AnyOf
from adjourn.policies.never import Never
from adjourn.policies.stopping.budget import Budget
from adjourn.policies.stopping.deer import Deer
from adjourn.policies.stopping.loop import Loop
from adjourn.server.config import Settings
from adjourn.server.errors import BadRequest
from tests.server.api.request_helpers import DEFAULT_POLICY, parse_request


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({}, {}, DEFAULT_POLICY),
        ({"adjourn": {}}, {}, DEFAULT_POLICY),
        ({"adjourn": None}, {}, DEFAULT_POLICY),
        ({"adjourn": {"policy": "loop"}}, {}, Loop()),
        ({"adjourn": {"policy": "any_of(deer, loop)"}}, {}, AnyOf((Deer(), Loop()))),
        ({"adjourn": {"policy": "budget", "max": 9}}, {}, Budget(max=9)),
        ({"adjourn": {"policy": "budget(max=9)", "grace": 0}}, {}, Budget(max=9, grace=0)),
        ({"adjourn": {"policy": "off"}}, {}, None),
        ({}, {"x-adjourn-policy": "loop"}, Loop()),
        ({}, {"x-adjourn-policy": "off"}, None),
        ({"adjourn": {"policy": "never"}}, {"x-adjourn-policy": "loop"}, Never()),
        ({"adjourn": {"max": 9}}, {"x-adjourn-policy": "budget"}, Budget(max=9)),
        ({"model": "m:loop"}, {}, Loop()),
        ({"model": "m:off"}, {}, None),
        ({"model": "m:loop"}, {"x-adjourn-policy": "never"}, Never()),
        ({"model": "m:budget", "adjourn": {"max": 9}}, {}, Budget(max=9)),
        ({"adjourn": {"threshold": 0.9}}, {}, Deer(threshold=0.9)),
    ],
)
def test_the_policy_comes_from_field_header_alias_or_default(
    fields: dict[str, Any], headers: dict[str, str], expected: Any
) -> None:
    """In this order; options are applied to the policy that was found."""
    request = parse_request(headers, **fields)
    assert request.policy == expected
    assert request.model == "m"
    assert request.always_summarize == bool(
        fields.get("adjourn") is not None or headers or "model" in fields
    )


@pytest.mark.parametrize("policy", [5, False, True, [], {}, ["deer"]])
def test_a_policy_must_be_a_string(policy: Any) -> None:
    """``false`` means neither "off" nor the default."""
    with pytest.raises(BadRequest, match="string"):
        parse_request(adjourn={"policy": policy})


@pytest.mark.parametrize(
    ("fields", "headers", "named"),
    [
        ({"adjourn": {"policy": "dear"}}, {}, "deer"),
        ({"adjourn": {"policy": "deer", "treshold": 1}}, {}, "threshold"),
        ({"adjourn": {"policy": "deer", "threshold": 3}}, {}, "between 0 and 1"),
        ({"adjourn": {"treshold": 1}}, {}, "threshold"),
        ({}, {"x-adjourn-policy": "dear"}, "deer"),
        ({}, {"x-adjourn-policy": "a" + "+a" * 900}, "deer"),
        ({"model": "m:dear"}, {}, "deer"),
    ],
)
def test_the_error_for_an_unknown_policy_names_the_valid_ones(
    fields: dict[str, Any], headers: dict[str, str], named: str
) -> None:
    """The same for an unknown or invalid option. The status is 400."""
    with pytest.raises(BadRequest, match=named) as caught:
        parse_request(headers, **fields)
    assert (caught.value.status, caught.value.code) == (400, "bad_policy")


def test_options_without_a_policy_are_refused() -> None:
    """If the server's default is off, options need a policy in the request."""
    with pytest.raises(BadRequest, match="names no policy"):
        parse_request(settings=Settings(policy="off"), adjourn={"threshold": 0.9})


ALIASES = {"fast": "m:loop", "plain": "m", "own:name": "m", "tall": "qwen3:8b:never"}


@pytest.mark.parametrize(
    ("named", "model", "policy"),
    [
        ("m", "m", DEFAULT_POLICY),
        ("fast", "m", Loop()),
        ("plain", "m", DEFAULT_POLICY),
        ("plain:loop", "m", Loop()),
        ("own:name", "m", DEFAULT_POLICY),
        ("qwen3:8b", "qwen3:8b", DEFAULT_POLICY),
        ("qwen3:8b:loop", "qwen3:8b", Loop()),
        ("tall", "qwen3:8b", Never()),
        ("unknown", "unknown", DEFAULT_POLICY),
        ("unknown:loop", "unknown:loop", DEFAULT_POLICY),
    ],
)
def test_a_model_name_is_an_alias_a_model_with_a_policy_or_an_id(
    named: str, model: str, policy: Any
) -> None:
    """An alias comes from the settings; a model id may itself contain a colon."""
    request = parse_request(model=named, settings=Settings(aliases=ALIASES))
    assert (request.model, request.policy) == (model, policy)
    assert json.loads(bytes(request.fields["model"])) == model
