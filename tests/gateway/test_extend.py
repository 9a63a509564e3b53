"""A trace that the model would end too soon goes on in the same response."""

from __future__ import annotations

import json
from typing import Any

from tests.gateway_client import chat, engine_requests, stream

SHORT = {"tokens": 30, "answer": "The answer is 42."}
AT_LEAST = {"policy": "budget", "min": 40, "waits": 3}


def reasoning(chunks: list[Any]) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join(delta.get("reasoning") or "" for delta in deltas)


def resumed(standin: str) -> list[list[int]]:
    """The ids that the latest requests resumed from."""
    return [body["kv_transfer_params"]["prompt_token_ids"] for body in resumptions(standin)]


def resumptions(standin: str) -> list[dict[str, Any]]:
    bodies = [request["body"] for request in engine_requests(standin)]
    return [json.loads(body) for body in bodies if "kv_transfer_params" in body]


def test_an_extended_stream_is_one_response(adjourn: str) -> None:
    """One id, one role, reasoning before answer, one finish, one usage, one end."""
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


def test_the_client_gets_what_was_put_in(adjourn: str) -> None:
    """The trace twice over, with "Wait" on a line of its own between, and one answer."""
    whole = reasoning(stream(adjourn, adjourn={"policy": "never"}, standin=SHORT))
    chunks = stream(adjourn, adjourn=AT_LEAST, standin=SHORT)
    assert reasoning(chunks) == f"{whole}\nWait{whole}"
    assert chunks[-2]["adjourn"]["extended"] == 1


def test_the_engine_goes_on_from_what_the_client_saw(adjourn: str, standin: str) -> None:
    """Each new stream's prompt is the prompt and the very ids that the client got so far."""
    asked = {**AT_LEAST, "min": 80}
    chunks = stream(adjourn, adjourn=asked, return_token_ids=True, standin=SHORT)
    ids = [i for c in chunks[1:-1] for i in c["choices"][0]["token_ids"] or []]
    seen = chunks[0]["prompt_token_ids"] + ids
    assert chunks[-2]["adjourn"]["extended"] == 2
    for prompt in resumed(standin)[-2:]:
        assert prompt == seen[: len(prompt)]


def test_usage_and_ledger_agree(adjourn: str) -> None:
    """The prompt once, and all that the client got; what was said behind the end is waste."""
    options = {"include_usage": True}
    last = stream(adjourn, adjourn=AT_LEAST, stream_options=options, standin=SHORT)[-2]
    tokens, usage = last["adjourn"]["tokens"], last["usage"]
    assert tokens["prompt"] == usage["prompt_tokens"]
    given = sum(tokens[kind] for kind in ("reasoning", "marker", "closing", "answer"))
    assert usage["completion_tokens"] == given
    assert tokens["reasoning"] == usage["completion_tokens_details"]["reasoning_tokens"]
    assert tokens["wasted"] >= 1


def test_no_more_often_than_it_may(adjourn: str) -> None:
    """``waits`` times, however short the trace still is."""
    note = stream(adjourn, adjourn={**AT_LEAST, "min": 4000}, standin=SHORT)[-2]["adjourn"]
    assert note["extended"] == 3
    assert not note["stopped"]


def test_an_engine_that_would_not(adjourn: str) -> None:
    """The model's own end comes after all, whole."""
    whole = stream(adjourn, adjourn={"policy": "never"}, standin=SHORT)
    faulty = {**SHORT, "ignore_prompt_ids": True}
    chunks = stream(adjourn, adjourn=AT_LEAST, standin=faulty)
    assert reasoning(chunks) == reasoning(whole)
    assert chunks[-2]["adjourn"]["muted"] == "ids-not-honoured"


def test_an_unstreamed_extension(adjourn: str) -> None:
    """One document with all of it."""
    reply = chat(adjourn, adjourn=AT_LEAST, standin=SHORT).json()
    message = reply["choices"][0]["message"]
    assert "\nWait" in message["reasoning"]
    assert message["content"].strip() == "The answer is 42."
    assert reply["adjourn"]["extended"] == 1


def test_the_clients_limit_spans_the_streams(adjourn: str, standin: str) -> None:
    """What was thought is taken from max_tokens before more is asked for."""
    chat(adjourn, adjourn=AT_LEAST, max_tokens=90, standin=SHORT)
    assert resumptions(standin)[-1]["max_tokens"] == 90 - 30 - 2


def test_reasoning_that_is_hidden_stays_hidden(adjourn: str) -> None:
    """A client that wants no reasoning does not get the words that were put in either."""
    chunks = stream(adjourn, adjourn=AT_LEAST, include_reasoning=False, standin=SHORT)
    assert reasoning(chunks) == ""
    assert chunks[-2]["adjourn"]["extended"] == 1


def test_a_trace_that_is_not_begun(adjourn: str) -> None:
    """The words that stand in its place are its reasoning; the answer follows."""
    chunks = stream(adjourn, adjourn={"policy": "no-thinking"}, standin=SHORT)
    assert reasoning(chunks) == "Okay, I think I have finished thinking."
    note = chunks[-2]["adjourn"]
    assert (note["stopped"], note["reason"], note["position"]) == (True, "no-thinking", 0)


def test_a_bias_is_the_main_streams_alone(adjourn: str, standin: str) -> None:
    """The end marker's, beside the client's own; the answer behind a cut has the client's."""
    policy = {"policy": "any_of(tilt(bias=2), budget(max=5))"}
    stream(adjourn, adjourn=policy, logit_bias={"7": 1}, standin={"tokens": 80})
    bodies = [json.loads(r["body"]) for r in engine_requests(standin) if "messages" in r["body"]]
    main, answer = (body["logit_bias"] for body in bodies[-2:])
    assert (len(main), main["7"], set(main.values())) == (2, 1, {1, 2})
    assert answer == {"7": 1}
