"""A cut is seamless in one response."""

from __future__ import annotations

import json

from tests.gateway_client import chat, engine_requests, stream

SURE = {"tokens": 80, "cues": [20, 50], "trial_logprob": -0.001}


def test_a_cut_stream_is_one_response(adjourn: str) -> None:
    """One id, one role, reasoning before answer, one finish, one usage, one end."""
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
    """The client sees neither the cue nor anything that was decoded behind it."""
    chunks = stream(adjourn, standin=SURE)
    thought = "".join(
        c["choices"][0]["delta"].get("reasoning", "") for c in chunks if c != "[DONE]"
    )
    assert "Wait" not in thought
    assert len(thought) > 20


def test_the_engine_answers_from_what_the_client_saw(adjourn: str, standin: str) -> None:
    """The answer's prompt is the main stream's prompt, the ids the client got, the closing."""
    chunks = stream(adjourn, return_token_ids=True, standin=SURE)
    ids = [i for c in chunks[1:-1] for i in c["choices"][0]["token_ids"]]
    resumed = _resumed(standin)
    prompt = resumed["kv_transfer_params"]["prompt_token_ids"]
    seen = chunks[0]["prompt_token_ids"] + ids
    assert prompt == seen[: len(prompt)]


def _resumed(standin: str) -> dict:
    """The latest request that resumed from token ids."""
    bodies = [
        json.loads(r["body"]) for r in engine_requests(standin) if "kv_transfer_params" in r["body"]
    ]
    return bodies[-1]


def test_usage_and_ledger_agree(adjourn: str) -> None:
    """The prompt counts once; completion is all that the client got; reasoning is the trace."""
    chunks = stream(adjourn, stream_options={"include_usage": True}, standin=SURE)
    last = chunks[-2]
    tokens, usage = last["adjourn"]["tokens"], last["usage"]
    assert tokens["prompt"] == usage["prompt_tokens"]
    assert tokens["reasoning"] == usage["completion_tokens_details"]["reasoning_tokens"] == 20
    given = tokens["reasoning"] + tokens["marker"] + tokens["closing"] + tokens["answer"]
    assert given == usage["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert tokens["probe"] > 0


def test_the_note_says_what_was_done(adjourn: str) -> None:
    """Without usage it stands on the chunk that finishes the choice."""
    last = stream(adjourn, standin=SURE)[-2]
    assert last["choices"][0]["finish_reason"] == "stop"
    note = last["adjourn"]
    assert (
        note["stopped"],
        note["policy"],
        note["reason"],
        note["action"],
        note["position"],
    ) == (True, "deer", "confident", "carried-out", 20)
    assert 0.95 < note["confidence"] < 1


def test_an_unstreamed_cut(adjourn: str) -> None:
    """One document with everything, and a header that says what was done."""
    reply = chat(adjourn, standin=SURE)
    choice = reply.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "Wait" not in choice["message"]["reasoning"]
    assert choice["message"]["content"].startswith("The answer")
    assert '"stopped":true' in reply.headers["x-adjourn"]
    assert reply.json()["adjourn"]["stopped"] is True


def test_the_clients_budget_spans_the_cut(adjourn: str, standin: str) -> None:
    """What was thought is taken from the client's max_tokens before the answer is asked for."""
    chat(adjourn, max_tokens=60, standin=SURE)
    assert _resumed(standin)["max_tokens"] == 60 - 20 - 3
