"""A policy extends a trace that the model ended too early, within the same response."""

from __future__ import annotations

import json
from typing import Any

from tests.gateway_client import chat, engine_requests, stream

SHORT = {"tokens": 30, "answer": "The answer is 42."}
AT_LEAST = {"policy": "budget", "min": 40, "waits": 3}


def reasoning(chunks: list[Any]) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join(delta.get("reasoning") or "" for delta in deltas)


def resumed_prompts(standin: str) -> list[list[int]]:
    """The token ids that the latest requests resumed from."""
    return [body["kv_transfer_params"]["prompt_token_ids"] for body in resume_requests(standin)]


def resume_requests(standin: str) -> list[dict[str, Any]]:
    bodies = [request["body"] for request in engine_requests(standin)]
    return [json.loads(body) for body in bodies if "kv_transfer_params" in body]


def test_an_extended_stream_is_one_response(adjourn: str) -> None:
    """One id, one role, reasoning before the answer, one finish reason, one usage, one [DONE]."""
    options = {"include_usage": True}
    chunks = stream(adjourn, adjourn=AT_LEAST, stream_options=options, standin=SHORT)
    assert chunks.pop() == "[DONE]"
    assert "[DONE]" not in chunks
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    assert ["role" in d for d in deltas] == [True] + [False] * (len(deltas) - 1)
    kinds = ["reasoning" if "reasoning" in d else "content" for d in deltas[1:]]
    assert sorted(kinds, reverse=True) == kinds
    finishes = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert [f for f in finishes if f] == ["stop"]
    assert sum("usage" in c for c in chunks) == 1


def test_the_client_gets_the_inserted_text(adjourn: str) -> None:
    """The trace twice, "Wait" on its own line between, and one answer."""
    whole = reasoning(stream(adjourn, adjourn={"policy": "never"}, standin=SHORT))
    chunks = stream(adjourn, adjourn=AT_LEAST, standin=SHORT)
    assert reasoning(chunks) == f"{whole}\nWait{whole}"
    assert chunks[-2]["adjourn"]["extended"] == 1


def test_the_engine_continues_from_the_ids_that_the_client_got(adjourn: str, standin: str) -> None:
    """The prompt of each new stream is the main prompt plus the ids sent so far."""
    options = {**AT_LEAST, "min": 80}
    chunks = stream(adjourn, adjourn=options, return_token_ids=True, standin=SHORT)
    ids = [i for c in chunks[1:-1] for i in c["choices"][0]["token_ids"] or []]
    sent = chunks[0]["prompt_token_ids"] + ids
    assert chunks[-2]["adjourn"]["extended"] == 2
    for prompt in resumed_prompts(standin)[-2:]:
        assert prompt == sent[: len(prompt)]


def test_usage_equals_the_ledger(adjourn: str) -> None:
    """The prompt counts once, plus every token the client got; discarded tokens after the model's
    own end count as wasted."""
    options = {"include_usage": True}
    last = stream(adjourn, adjourn=AT_LEAST, stream_options=options, standin=SHORT)[-2]
    tokens, usage = last["adjourn"]["tokens"], last["usage"]
    assert tokens["prompt"] == usage["prompt_tokens"]
    sent = sum(tokens[kind] for kind in ("reasoning", "marker", "closing", "answer"))
    assert usage["completion_tokens"] == sent
    assert tokens["reasoning"] == usage["completion_tokens_details"]["reasoning_tokens"]
    assert tokens["wasted"] >= 1


def test_a_trace_is_extended_at_most_waits_times(adjourn: str) -> None:
    """However short the trace still is."""
    summary = stream(adjourn, adjourn={**AT_LEAST, "min": 4000}, standin=SHORT)[-2]["adjourn"]
    assert summary["extended"] == 3
    assert not summary["stopped"]


def test_an_engine_that_cannot_extend_changes_nothing(adjourn: str) -> None:
    """The client gets the complete response as the model ended it."""
    whole = stream(adjourn, adjourn={"policy": "never"}, standin=SHORT)
    faulty = {**SHORT, "ignore_prompt_ids": True}
    chunks = stream(adjourn, adjourn=AT_LEAST, standin=faulty)
    assert reasoning(chunks) == reasoning(whole)
    assert chunks[-2]["adjourn"]["muted"] == "ids-not-honoured"


def test_an_unstreamed_extension_gives_one_document(adjourn: str) -> None:
    """With both parts of the trace and one answer."""
    reply = chat(adjourn, adjourn=AT_LEAST, standin=SHORT).json()
    message = reply["choices"][0]["message"]
    assert "\nWait" in message["reasoning"]
    assert message["content"].strip() == "The answer is 42."
    assert reply["adjourn"]["extended"] == 1


def test_max_tokens_covers_all_streams(adjourn: str, standin: str) -> None:
    """The tokens generated so far are subtracted from it before more are requested."""
    chat(adjourn, adjourn=AT_LEAST, max_tokens=90, standin=SHORT)
    assert resume_requests(standin)[-1]["max_tokens"] == 90 - 30 - 2


def test_inserted_text_is_hidden_with_the_reasoning(adjourn: str) -> None:
    """A client that asked for no reasoning does not get the inserted words either."""
    chunks = stream(adjourn, adjourn=AT_LEAST, include_reasoning=False, standin=SHORT)
    assert reasoning(chunks) == ""
    assert chunks[-2]["adjourn"]["extended"] == 1


def test_no_thinking_replaces_the_trace_with_a_fixed_text(adjourn: str) -> None:
    """The client gets the text as reasoning, and then the answer."""
    chunks = stream(adjourn, adjourn={"policy": "no-thinking"}, standin=SHORT)
    assert reasoning(chunks) == "Okay, I think I have finished thinking."
    summary = chunks[-2]["adjourn"]
    assert (summary["stopped"], summary["reason"], summary["position"]) == (True, "no-thinking", 0)


def test_a_policys_bias_applies_to_the_main_stream_only(adjourn: str, standin: str) -> None:
    """On the end marker, in addition to the client's bias; the answer after a cut has only the
    client's."""
    policy = {"policy": "any_of(tilt(bias=2), budget(max=5))"}
    stream(adjourn, adjourn=policy, logit_bias={"7": 1}, standin={"tokens": 80})
    bodies = [json.loads(r["body"]) for r in engine_requests(standin) if "messages" in r["body"]]
    main, answer = (body["logit_bias"] for body in bodies[-2:])
    assert (len(main), main["7"], set(main.values())) == (2, 1, {1, 2})
    assert answer == {"7": 1}
