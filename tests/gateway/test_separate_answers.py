"""Answers from a second engine request without a cut: stop strings, rescues and escapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.services import free_port, start_gateway
from tests.gateway_client import chat, engine_requests, metric_value, normalize, raw_stream, stream

CALM = {"tokens": 30}
CUT = {"policy": "budget", "max": 20, "grace": 0}
USAGE = {"stream_options": {"include_usage": True}}


def joined(chunks: list[Any], key: str) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join(delta.get(key) or "" for delta in deltas)


def bodies(standin: str, name: str) -> list[dict[str, Any]]:
    """The bodies that the engine got for the request with this id, in order."""
    own = [
        r for r in engine_requests(standin) if r["headers"].get("x-request-id", "").startswith(name)
    ]
    return [json.loads(request["body"]) for request in own]


@pytest.mark.parametrize("policy", ["never", CUT], ids=["whole", "cut"])
def test_stop_strings_are_for_the_answer(adjourn: str, standin: str, policy: Any) -> None:
    """The trace is generated without them, its answer with them."""
    name = f"stops-{len(policy)}"
    fields = {"standin": CALM, "adjourn": {"policy": policy} if policy == "never" else policy}
    chunks = stream(adjourn, {"x-request-id": name}, stop=["END", "X"], **fields, **USAGE)
    main, answer = bodies(standin, name)
    assert "stop" not in main
    assert answer["stop"] == ["END", "X"]
    assert joined(chunks, "content").strip().startswith("The answer")
    finishes = [c["choices"][0]["finish_reason"] for c in chunks[:-1] if c["choices"]]
    assert [f for f in finishes if f] == ["stop"]
    assert sum(c != "[DONE]" and "usage" in c for c in chunks) == 1


@pytest.mark.parametrize("form", [{}, {"multi": 4}, {"both_fields": True}, {"writes_marker": True}])
def test_an_uncut_trace_stays_complete(adjourn: str, standin: str, form: dict[str, Any]) -> None:
    """The client gets every token of the trace, and none of the answer that the main stream began
    without stop strings."""
    scenario = {**CALM, **form}
    direct = stream(standin, standin=scenario, **USAGE)
    ours = stream(adjourn, stop="END", standin=scenario, **USAGE)
    assert joined(direct, "reasoning") == joined(ours, "reasoning")
    assert joined(direct, "content").strip() == joined(ours, "content").strip()


def test_each_token_id_is_sent_once(adjourn: str, standin: str) -> None:
    """Although the ids come from two engine requests."""
    scenario = {**CALM, "multi": 4}

    def ids(url: str, **fields: Any) -> list[int]:
        chunks = stream(url, return_token_ids=True, standin=scenario, **fields)
        return [i for c in chunks[:-1] for i in c["choices"][0].get("token_ids") or ()]

    direct, ours = ids(standin), ids(adjourn, stop="END")
    direct.remove(271)  # the whitespace that the stand-in writes after its own end marker
    assert direct == ours


def test_stop_strings_apply_without_a_trace(adjourn: str, standin: str) -> None:
    """With thinking switched off."""
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    chat(adjourn, {"x-request-id": "plain"}, stop="END", standin=CALM, **off)
    assert bodies(standin, "plain")[-1]["stop"] == "END"


def test_an_engine_that_cannot_resume_answers_in_the_main_stream(adjourn: str) -> None:
    """The client gets that answer, and the failure is counted."""
    before = metric_value(adjourn, "adjourn_fail_open_total", reason="ids-not-honoured")
    chunks = stream(adjourn, stop="END", standin={**CALM, "ignore_prompt_ids": True})
    assert joined(chunks, "content").strip().startswith("The answer")
    assert chunks[-1] == "[DONE]"
    assert before + 1 == metric_value(adjourn, "adjourn_fail_open_total", reason="ids-not-honoured")


LIMIT_IN_TRACE = {"max_tokens": 20, "standin": CALM}
ENDS_IN_TRACE = {"standin": {**CALM, "ends_in_trace": True}}


@pytest.mark.parametrize(
    ("fields", "reason", "reasoning_tokens"),
    [(LIMIT_IN_TRACE, "length", 20), (ENDS_IN_TRACE, "stop", 30)],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_a_response_that_ends_in_its_trace_gets_an_answer(
    adjourn: str, fields: dict[str, Any], reason: str, reasoning_tokens: int, streamed: bool
) -> None:
    """The whole trace, then an answer, one finish reason, one usage; reported and counted."""
    before = metric_value(adjourn, "adjourn_rescues_total", reason=reason)
    if streamed:
        chunks = stream(adjourn, **fields, **USAGE)
        last, content = chunks[-2], joined(chunks, "content")
        finishes = [c["choices"][0]["finish_reason"] for c in chunks[:-1] if c["choices"]]
        assert [f for f in finishes if f] == ["stop"]
    else:
        last = chat(adjourn, **fields).json()
        content = last["choices"][0]["message"]["content"]
    assert content.startswith("The answer")
    assert last["adjourn"]["rescued"] == reason
    assert last["adjourn"]["stopped"] is False
    tokens, usage = last["adjourn"]["tokens"], last["usage"]
    assert tokens["reasoning"] == reasoning_tokens
    sent = tokens["reasoning"] + tokens["marker"] + tokens["closing"] + tokens["answer"]
    assert sent == usage["completion_tokens"]
    assert metric_value(adjourn, "adjourn_rescues_total", reason=reason) == before + 1


def test_a_rescue_has_its_own_token_limit(adjourn: str, standin: str) -> None:
    """Since the client's is used up."""
    stream(adjourn, {"x-request-id": "rescued"}, **LIMIT_IN_TRACE)
    assert bodies(standin, "rescued")[-1]["max_tokens"] == 512


def test_a_rescued_trace_is_sent_once(adjourn: str, standin: str) -> None:
    """The engine's last chunk keeps its reasoning and loses its finish reason."""
    direct, ours = stream(standin, **LIMIT_IN_TRACE), stream(adjourn, **LIMIT_IN_TRACE)
    assert joined(direct, "reasoning") == joined(ours, "reasoning")


@pytest.fixture(scope="module")
def no_rescue_gateway(standin: str) -> Iterator[str]:
    """A gateway with ``rescue_tokens`` 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADJOURN_RESCUE_TOKENS", "0")
        with start_gateway(standin, free_port(), "--hold-out", "0") as url:
            yield url


def test_rescues_can_be_switched_off(no_rescue_gateway: str, standin: str) -> None:
    """The response then has the engine's own choices."""
    direct, ours = stream(standin, **LIMIT_IN_TRACE), stream(no_rescue_gateway, **LIMIT_IN_TRACE)
    assert [c["choices"] for c in direct[:-1]] == [c["choices"] for c in ours[:-1]]


def test_an_engine_that_cannot_resume_is_not_rescued(adjourn: str) -> None:
    """The response ends as the engine ended it."""
    fields = {"max_tokens": 20, "standin": {**CALM, "ignore_prompt_ids": True}}
    last = stream(adjourn, **fields)[-2]
    assert last["choices"][0]["finish_reason"] == "length"
    assert "adjourn" not in last


ESCAPING = {"standin": {"tokens": 30, "reopens": 1, "answer": "It is 42."}, "adjourn": CUT}


def test_the_first_escape_is_closed(adjourn: str, standin: str) -> None:
    """The client gets the answer before the second trace and the one after its closing sequence;
    the second trace is not sent, and the escape is counted."""
    before = metric_value(adjourn, "adjourn_escapes_total", action="ended")
    chunks = stream(adjourn, {"x-request-id": "escape"}, **ESCAPING, **USAGE)
    assert joined(chunks, "content") == "It is 42." * 2
    finishes = [c["choices"][0]["finish_reason"] for c in chunks[:-1] if c["choices"]]
    assert [f for f in finishes if f] == ["stop"]
    resumed = [b["kv_transfer_params"]["prompt_token_ids"] for b in bodies(standin, "escape")[1:]]
    assert resumed[1][: len(resumed[0])] == resumed[0]
    assert resumed[1].count(1) == resumed[0].count(1) + 1
    tokens, usage = chunks[-2]["adjourn"]["tokens"], chunks[-2]["usage"]
    sent = tokens["reasoning"] + tokens["marker"] + tokens["closing"] + tokens["answer"]
    assert sent == usage["completion_tokens"]
    assert metric_value(adjourn, "adjourn_escapes_total", action="ended") == before + 1


def test_the_second_escape_is_left_open(adjourn: str) -> None:
    """It reaches the client, and is counted."""
    before = metric_value(adjourn, "adjourn_escapes_total", action="left")
    fields = {**ESCAPING, "standin": {**ESCAPING["standin"], "reopens": 2}}
    chunks = stream(adjourn, **fields)
    content = joined(chunks, "content")
    assert content.startswith("It is 42." * 2 + " ")
    assert content.endswith("It is 42.")
    assert metric_value(adjourn, "adjourn_escapes_total", action="left") == before + 1


def test_continuous_usage_increases_over_a_cut(adjourn: str) -> None:
    """The completion never decreases, the prompt stays the same, and the last is that of the whole
    response."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(adjourn, stream_options=options, standin=CALM, adjourn=CUT)
    usages = [c["usage"] for c in chunks[:-1]]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert len({usage["prompt_tokens"] for usage in usages}) == 1
    assert counts[-1] == counts[-2]
    assert chunks[-2]["adjourn"]["stopped"] is True


def test_continuous_usage_of_an_uncut_stream_is_the_engines(adjourn: str, standin: str) -> None:
    """Byte for byte."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    fields = {"stream_options": options, "standin": CALM}
    assert normalize(raw_stream(standin, **fields)) == normalize(raw_stream(adjourn, **fields))
