"""Which policy judges a request, and what a wrong choice is answered with."""

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
def test_a_policy_is_chosen_by(
    adjourn: str, fields: dict[str, object], headers: dict[str, str]
) -> None:
    """Field, specification, alias or header: the same policy each time."""
    note = chat(adjourn, headers, standin=LONG, **fields).json()["adjourn"]
    assert (note["stopped"], note["policy"]) == (True, "budget")


def test_options_alone_change_the_default_policy(adjourn: str) -> None:
    """`adjourn: {threshold}` without a policy is the default one with that threshold."""
    note = chat(adjourn, standin=LONG, adjourn={"threshold": 0.9999}).json()["adjourn"]
    assert (note["stopped"], note["policy"]) == (False, "deer")


def test_a_composition(adjourn: str) -> None:
    """Policies compose in a request too."""
    note = chat(adjourn, standin=LONG, adjourn={"policy": "any_of(never, deer)"}).json()["adjourn"]
    assert (note["stopped"], note["policy"], note["reason"]) == (True, "any_of", "confident")


@pytest.mark.parametrize(
    ("asked", "says"),
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
def test_a_bad_request_is_told_what_would_be_right(
    adjourn: str, asked: dict[str, object], says: str
) -> None:
    """400, OpenAI's error shape, and a message that names the valid."""
    reply = httpx.post(adjourn + CHAT, json=body(**asked))
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert {"message", "type", "param", "code"} == set(error)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"[]", b'"text"', b"\xff", b"{", b"{}", b"[" * 9999]
)
def test_what_is_no_request(adjourn: str, content: bytes) -> None:
    """Anything but a JSON object with messages is a 400, never a 500."""
    reply = httpx.post(adjourn + CHAT, content=content)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_model_that_does_not_exist(adjourn: str, standin: str) -> None:
    """The engine's own 404, unmodified."""
    asked = body(model="nobody")
    direct, ours = httpx.post(standin + CHAT, json=asked), httpx.post(adjourn + CHAT, json=asked)
    assert ours.status_code == 404
    assert direct.content == ours.content


@pytest.fixture(scope="module")
def special(standin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway that only observes, with aliases and a small limit for bodies."""
    path = tmp_path_factory.mktemp("config") / "adjourn.yaml"
    path.write_text(
        "mode: observe\nmax_body_bytes: 2000\naliases:\n  fast: standin:deer\n  full: standin:off\n"
    )
    with start_gateway(standin, free_port(), "--config", str(path)) as url:
        yield url


def test_observe_decides_and_carries_nothing_out(special: str) -> None:
    """The whole trace comes, and the note says where it would have been cut."""
    reply = chat(special, standin=LONG).json()
    assert "Wait" in reply["choices"][0]["message"]["reasoning"]
    assert (
        reply["adjourn"]["stopped"],
        reply["adjourn"]["action"],
        reply["adjourn"]["position"],
    ) == (False, "observed", 20)
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 60
    assert metric_value(special, "adjourn_tokens_after_trigger_sum", action="observed") >= 40


def test_aliases(special: str) -> None:
    """A model name of the operator's own."""
    assert chat(special, model="fast", standin=LONG).headers["x-adjourn-policy"] == "deer"
    assert chat(special, model="full", standin=LONG).headers["x-adjourn-policy"] == "off"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit(special: str, announced: bool) -> None:
    """413, whether the length was announced or not."""
    content = b"x" * 3000 if announced else iter([b"x" * 1500] * 2)
    reply = httpx.post(special + CHAT, content=content)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


def test_a_share_of_conversations_is_held_out(standin: str) -> None:
    """With everything held out no trigger is carried out, and each is counted as held out."""
    with start_gateway(standin, free_port(), "--hold-out", "1") as url:
        reply = chat(url, standin=LONG).json()
        assert reply["adjourn"]["action"] == "held-out"
        assert metric_value(url, "adjourn_triggers_total", action="held-out") == 1
