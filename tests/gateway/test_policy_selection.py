"""How a request selects its policy, and the errors for a wrong selection."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from benchmarks.services import free_port, start_gateway
from tests.gateway_client import CHAT, body, chat, metric_value

LONG = {"tokens": 60, "cues": [20], "trial_logprob": -0.001}


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"adjourn": {"policy": "budget", "max": 10}}, {}),
        ({"adjourn": {"policy": "budget(max=10)"}}, {}),
        ({"model": "standin:budget(max=10)"}, {}),
        ({}, {"x-adjourn-policy": "budget(max=10)"}),
        ({"adjourn": {"max": 10}}, {"x-adjourn-policy": "budget"}),
    ],
)
def test_a_request_selects_a_policy(
    adjourn: str, fields: dict[str, object], headers: dict[str, str]
) -> None:
    """By fields, specification string, model suffix or header: the same policy each time."""
    summary = chat(adjourn, headers, standin=LONG, **fields).json()["adjourn"]
    assert (summary["stopped"], summary["policy"]) == (True, "budget")


def test_options_without_a_policy_apply_to_the_default(adjourn: str) -> None:
    """`adjourn: {threshold}` runs the default policy with that threshold."""
    summary = chat(adjourn, standin=LONG, adjourn={"threshold": 0.9999}).json()["adjourn"]
    assert (summary["stopped"], summary["policy"]) == (False, "deer")


def test_a_request_may_compose_policies(adjourn: str) -> None:
    """With `any_of`, in a specification string."""
    summary = chat(adjourn, standin=LONG, adjourn={"policy": "any_of(never, deer)"}).json()[
        "adjourn"
    ]
    assert (summary["stopped"], summary["policy"], summary["reason"]) == (
        True,
        "any_of",
        "confident",
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"adjourn": {"policy": "dear"}}, "deer"),
        ({"adjourn": {"policy": "deer", "treshold": 0.9}}, "threshold"),
        ({"adjourn": {"policy": "deer", "threshold": 2}}, "between 0 and 1"),
        ({"adjourn": {"policy": "deer", "threshold": "high"}}, "a number"),
        ({"adjourn": {"policy": 7}}, "string"),
        ({"adjourn": {"policy": "deer("}}, "cannot read"),
        ({"adjourn": {"policy": "__import__('os')"}}, "cannot read"),
        ({"model": "standin:dear"}, "deer"),
        ({"stream": "yes"}, "stream"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"adjourn": []}, "adjourn"),
    ],
)
def test_a_400_names_the_valid_values(
    adjourn: str, fields: dict[str, object], expected: str
) -> None:
    """In OpenAI's error shape."""
    reply = httpx.post(adjourn + CHAT, json=body(**fields))
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert expected in error["message"]
    assert error["type"] == "invalid_request_error"
    assert {"message", "type", "param", "code"} == set(error)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"[]", b'"text"', b"\xff", b"{", b"{}", b"[" * 9999]
)
def test_a_malformed_body_is_a_400(adjourn: str, content: bytes) -> None:
    """Anything but a JSON object with messages, and never a 500."""
    reply = httpx.post(adjourn + CHAT, content=content)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_the_engines_404(adjourn: str, standin: str) -> None:
    """Unmodified."""
    request = body(model="nobody")
    direct, ours = (
        httpx.post(standin + CHAT, json=request),
        httpx.post(adjourn + CHAT, json=request),
    )
    assert ours.status_code == 404
    assert direct.content == ours.content


@pytest.fixture(scope="module")
def observing_gateway(standin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway in observe mode, with aliases and a small limit for the request body."""
    path = tmp_path_factory.mktemp("config") / "adjourn.yaml"
    path.write_text(
        "mode: observe\nmax_body_bytes: 2000\naliases:\n  fast: standin:deer\n  full: standin:off\n"
    )
    with start_gateway(standin, free_port(), "--config", str(path)) as url:
        yield url


def test_observe_mode_reports_but_does_not_cut(observing_gateway: str) -> None:
    """The client gets the whole trace, and the summary has the position of the cut."""
    reply = chat(observing_gateway, standin=LONG).json()
    assert "Wait" in reply["choices"][0]["message"]["reasoning"]
    assert (
        reply["adjourn"]["stopped"],
        reply["adjourn"]["action"],
        reply["adjourn"]["position"],
    ) == (False, "observed", 20)
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 60
    assert (
        metric_value(observing_gateway, "adjourn_tokens_after_trigger_sum", action="observed") >= 40
    )


def test_an_alias_selects_model_and_policy(observing_gateway: str) -> None:
    """A model name that the operator configured."""
    assert chat(observing_gateway, model="fast", standin=LONG).headers["x-adjourn-policy"] == "deer"
    assert chat(observing_gateway, model="full", standin=LONG).headers["x-adjourn-policy"] == "off"


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_over_the_size_limit(observing_gateway: str, has_length: bool) -> None:
    """413, with a Content-Length header and without."""
    content = b"x" * 3000 if has_length else iter([b"x" * 1500] * 2)
    reply = httpx.post(observing_gateway + CHAT, content=content)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


def test_held_out_conversations_are_not_cut(standin: str) -> None:
    """With a share of 1 no trigger is carried out, and each is counted as held out."""
    with start_gateway(standin, free_port(), "--hold-out", "1") as url:
        reply = chat(url, standin=LONG).json()
        assert reply["adjourn"]["action"] == "held-out"
        assert metric_value(url, "adjourn_triggers_total", action="held-out") == 1
