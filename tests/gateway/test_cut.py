"""A response whose trace is cut looks like one uninterrupted response."""

from __future__ import annotations

import json

from tests.gateway_client import chat, engine_requests, stream

SURE = {"tokens": 80, "cues": [20, 50], "trial_logprob": -0.001}


def test_a_cut_stream_is_one_response(adjourn: str) -> None:
    """One id, one role, reasoning before the answer, one finish reason, one usage, one [DONE]."""
    chunks = stream(adjourn, stream_options={"include_usage": True}, standin=SURE)
    assert chunks.pop() == "[DONE]"
    assert "[DONE]" not in chunks
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    assert ["role" in d for d in deltas] == [True] + [False] * (len(deltas) - 1)
    kinds = ["reasoning" if "reasoning" in d else "content" for d in deltas[1:]]
    assert sorted(kinds, reverse=True) == kinds
    finishes = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert [f for f in finishes if f] == ["stop"]
    assert finishes[-1] == "stop"
    assert sum("usage" in c for c in chunks) == 1


def test_the_trace_ends_before_the_cue(adjourn: str) -> None:
    """The client sees neither the cue nor any token that the engine decoded after it."""
    chunks = stream(adjourn, standin=SURE)
    reasoning = "".join(
        c["choices"][0]["delta"].get("reasoning", "") for c in chunks if c != "[DONE]"
    )
    assert "Wait" not in reasoning
    assert len(reasoning) > 20


def test_the_answer_continues_the_token_ids_that_the_client_got(adjourn: str, standin: str) -> None:
    """The prompt of the answer request: the main prompt, those ids, the closing sequence."""
    chunks = stream(adjourn, return_token_ids=True, standin=SURE)
    ids = [i for c in chunks[1:-1] for i in c["choices"][0]["token_ids"]]
    request = latest_resume_request(standin)
    prompt = request["kv_transfer_params"]["prompt_token_ids"]
    expected = chunks[0]["prompt_token_ids"] + ids
    assert prompt == expected[: len(prompt)]


def latest_resume_request(standin: str) -> dict:
    """The body of the latest request that resumed from token ids."""
    bodies = [
        json.loads(r["body"]) for r in engine_requests(standin) if "kv_transfer_params" in r["body"]
    ]
    return bodies[-1]


def test_usage_equals_the_ledger(adjourn: str) -> None:
    """The prompt counts once, the completion is every token the client got, and the reasoning
    tokens are those of the trace."""
    chunks = stream(adjourn, stream_options={"include_usage": True}, standin=SURE)
    last = chunks[-2]
    tokens, usage = last["adjourn"]["tokens"], last["usage"]
    assert tokens["prompt"] == usage["prompt_tokens"]
    assert tokens["reasoning"] == usage["completion_tokens_details"]["reasoning_tokens"] == 20
    sent = tokens["reasoning"] + tokens["marker"] + tokens["closing"] + tokens["answer"]
    assert sent == usage["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert tokens["probe"] > 0


def test_the_summary_describes_the_cut(adjourn: str) -> None:
    """Without ``include_usage`` it is on the chunk with the finish reason."""
    last = stream(adjourn, standin=SURE)[-2]
    assert last["choices"][0]["finish_reason"] == "stop"
    summary = last["adjourn"]
    assert (
        summary["stopped"],
        summary["policy"],
        summary["reason"],
        summary["action"],
        summary["position"],
    ) == (True, "deer", "confident", "carried-out", 20)
    assert 0.95 < summary["confidence"] < 1


def test_an_unstreamed_cut_gives_one_document(adjourn: str) -> None:
    """With the whole response, and the summary in a header as well."""
    reply = chat(adjourn, standin=SURE)
    choice = reply.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "Wait" not in choice["message"]["reasoning"]
    assert choice["message"]["content"].startswith("The answer")
    assert '"stopped":true' in reply.headers["x-adjourn"]
    assert reply.json()["adjourn"]["stopped"] is True


def test_max_tokens_covers_trace_and_answer(adjourn: str, standin: str) -> None:
    """The tokens of the trace are subtracted from it before the answer is requested."""
    chat(adjourn, max_tokens=60, standin=SURE)
    assert latest_resume_request(standin)["max_tokens"] == 60 - 20 - 3
