"""Policies over several traces: raced or voted on, one is told as if it were the only one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from benchmarks.services import free_port, start_gateway
from tests.gateway_client import (
    CHAT,
    body,
    chat,
    engine_requests,
    events,
    metric_value,
    normalize,
    raw_stream,
    stream,
)

USAGE = {"stream_options": {"include_usage": True}}
RACE = {"policy": "first-finish", "traces": 3}


def race(*scenarios: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A request whose i-th trace has the i-th scenario."""
    by_seed = [[7 + i, scenario] for i, scenario in enumerate(scenarios)]
    return {"seed": 7, "standin": {"rate": 400, "by_seed": by_seed}, **fields}


def joined(chunks: list[Any], key: str) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join(delta.get(key) or "" for delta in deltas)


LONG, SHORT = {"tokens": 400}, {"tokens": 20, "answer": "The answer is 7."}


def test_the_first_to_end_its_thinking_is_told(adjourn: str, standin: str) -> None:
    """Byte for byte what it would have been alone, under the client's own id, but for the note."""
    fields = race(LONG, SHORT, LONG, adjourn=RACE, **USAGE)
    headers = {"x-request-id": "raced"}
    told = stream(adjourn, headers, **fields)
    alone = stream(standin, headers, seed=8, standin=fields["standin"], **USAGE)
    note = told[-2].pop("adjourn")
    for chunk in (*alone, *told):
        if chunk != "[DONE]":
            chunk["created"] = 0
    assert alone == told
    assert note["policy"], note["chosen"] == ("first-finish", 1)
    assert [trace["outcome"] for trace in note["traces"]] == ["given-up", "chosen", "given-up"]


def test_losers_are_ended_at_once(adjourn: str, standin: str) -> None:
    """What they decoded is waste, in the note and in the metrics, and they decoded little."""
    before = {
        k: metric_value(adjourn, "adjourn_tokens_total", kind=k) for k in ("wasted", "reasoning")
    }
    given_up = metric_value(adjourn, "adjourn_traces_total", outcome="given-up")
    reply = chat(adjourn, **race(LONG, SHORT, LONG, adjourn=RACE)).json()
    tokens = reply["adjourn"]["tokens"]
    losers = [t for t in reply["adjourn"]["traces"] if t["outcome"] == "given-up"]
    assert tokens["reasoning"] == 20
    assert 0 < tokens["wasted"] == sum(t["tokens"]["reasoning"] for t in losers) < 200
    after = {k: metric_value(adjourn, "adjourn_tokens_total", kind=k) for k in before}
    assert {k: after[k] - before[k] for k in before} == {
        "wasted": tokens["wasted"],
        "reasoning": 20,
    }
    assert metric_value(adjourn, "adjourn_traces_total", outcome="given-up") == given_up + 2
    usage = reply["usage"]
    assert usage["completion_tokens"] == 20 + tokens["marker"] + tokens["answer"]
    assert usage["prompt_tokens"] == tokens["prompt"] > 0


@pytest.mark.parametrize("policy", ["first-finish", "early-consistency"])
def test_an_unstreamed_reply_is_one_of_the_ordinary_shape(
    adjourn: str, standin: str, policy: str
) -> None:
    """The keys of a reply without the gateway, and the note."""
    fields = race(SHORT, SHORT, SHORT, SHORT, SHORT)
    ours = chat(adjourn, **fields, adjourn={"policy": policy}).json()
    alone = chat(standin, **fields).json()
    note = ours.pop("adjourn")
    assert list(alone) == list(ours)
    assert alone["choices"] == ours["choices"]
    assert alone["usage"] == ours["usage"]
    assert note["policy"] == policy


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"tokens": 20, "answer": text} for text in texts]


def test_a_unanimous_window_is_enough(adjourn: str, standin: str) -> None:
    """No trace is opened beyond it; equal by meaning, not by letter."""
    fields = race(*answers("The answer is 0.5.", "\\boxed{\\frac{1}{2}}", "\\boxed{1/2}"))
    policy = {"policy": "early-consistency", "window": 3, "max": 9}
    reply = chat(adjourn, {"x-request-id": "alike"}, **fields, adjourn=policy).json()
    note = reply["adjourn"]
    assert (note["reason"], note["votes"], len(note["traces"])) == ("unanimous", 3, 3)
    asked = [
        r
        for r in engine_requests(standin)
        if r["headers"].get("x-request-id", "").startswith("alike")
    ]
    assert sorted(json.loads(r["body"])["seed"] for r in asked) == [7, 8, 9]
    assert len({r["headers"]["x-session-id"] for r in asked}) == 1


def test_the_majority_is_told(adjourn: str) -> None:
    """Over all windows, by the first trace of the class that leads."""
    fields = race(*answers("1", "2", "2", "3", "2"))
    policy = {"policy": "early-consistency", "window": 2, "max": 5}
    reply = chat(adjourn, **fields, adjourn=policy).json()
    assert reply["choices"][0]["message"]["content"].strip() == "2"
    assert reply["adjourn"]["votes"] >= 2
    assert reply["adjourn"]["chosen"] == 1


def test_each_trace_runs_a_policy_of_its_own(adjourn: str) -> None:
    """``early-consistency(budget)``: all are cut, one is told, its usage is that of the cut one."""
    fields = race(LONG, LONG, LONG)
    policy = {"policy": "early-consistency(budget(max=30, grace=0), window=3)"}
    chunks = stream(adjourn, **fields, adjourn=policy, **USAGE)
    note, usage = chunks[-2]["adjourn"], chunks[-2]["usage"]
    assert note["stopped"] is True
    assert [trace["position"] for trace in note["traces"]] == [30, 30, 30]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 30
    assert usage["total_tokens"] == usage["completion_tokens"] + usage["prompt_tokens"]
    assert note["tokens"]["wasted"] > 60
    assert chunks.count("[DONE]") == 1
    assert len({c["id"] for c in chunks if c != "[DONE]"}) == 1


def test_equal_by_algebra(adjourn: str) -> None:
    """Told by the library, in its own process."""
    texts = "\\boxed{3}", "\\boxed{\\sqrt{8}}", "\\boxed{2\\sqrt{2}}"
    policy = {"policy": "early-consistency", "window": 3, "max": 3}
    note = chat(adjourn, **race(*answers(*texts)), adjourn=policy).json()["adjourn"]
    assert (note["chosen"], note["votes"]) == (1, 2)
    assert [trace["answer"] for trace in note["traces"]] == [0, 1, 1]


def test_a_trace_that_fails_is_outlived(adjourn: str) -> None:
    """Refused or broken off: the others go on."""
    fields = race({"status": 429}, {"tokens": 60, "die_after": 9}, SHORT)
    reply = chat(adjourn, **fields, adjourn=RACE)
    assert reply.status_code == 200
    outcomes = [trace["outcome"] for trace in reply.json()["adjourn"]["traces"]]
    assert outcomes == ["failed", "failed", "chosen"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("policy", ["first-finish", "early-consistency"])
def test_what_all_are_refused_with_is_the_clients(
    adjourn: str, standin: str, streamed: bool, policy: str
) -> None:
    """Once, unmodified."""
    fields = {"stream": streamed, "standin": {"status": 429, "retry_after": 7}}
    direct, ours = chat(standin, **fields), chat(adjourn, adjourn={"policy": policy}, **fields)
    assert (direct.status_code, direct.content) == (ours.status_code, ours.content)


def test_all_that_break_off_are_an_error(adjourn: str) -> None:
    """502 before anything was sent; nothing is opened behind a window without an answer."""
    fields = {"standin": {"tokens": 60, "die_after": 9}}
    policy = {"policy": "early-consistency", "window": 3}
    failed = metric_value(adjourn, "adjourn_traces_total", outcome="failed")
    assert chat(adjourn, adjourn=policy, **fields).status_code == 502
    assert metric_value(adjourn, "adjourn_traces_total", outcome="failed") == failed + 3


def test_a_winner_that_breaks_off_breaks_the_response(adjourn: str) -> None:
    """As one that was alone does: an error event, no [DONE], a broken connection."""
    fields = race(LONG, {"tokens": 20, "die_after": 24}, LONG)
    received: list[bytes] = []

    def read() -> None:
        asked = body(stream=True, adjourn=RACE, **fields)
        with httpx.stream("POST", adjourn + CHAT, json=asked) as reply:
            received.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    told = events(b"".join(received))
    assert told[-1]["error"]["type"] == "upstream_error"
    assert "[DONE]" not in told


@pytest.fixture(scope="module")
def brisk(standin: str) -> Iterator[str]:
    """A gateway whose comments come often, and whose default is a race."""
    arguments = ("--policy", "first-finish(traces=2)", "--hold-out", "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADJOURN_KEEP_ALIVE", "0.05")
        with start_gateway(standin, free_port(), *arguments) as url:
            yield url


def test_comments_keep_a_stream_alive(brisk: str) -> None:
    """While traces race, and none any more once there is a winner."""
    raw = raw_stream(brisk, **race({"tokens": 120}, {"tokens": 120}))
    comments = raw.count(b": racing\n\n")
    assert comments >= 3
    assert b": racing" not in raw[raw.index(b"data:") :]


def test_the_winner_is_told_in_one_go_and_then_live(brisk: str) -> None:
    """Its reasoning comes at once, its answer as it is decoded."""
    fields = race({"tokens": 40, "answer_tokens": 80}, LONG)
    times: list[tuple[float, bool]] = []
    with httpx.stream("POST", brisk + CHAT, json=body(stream=True, **fields), timeout=60) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                times.append((time.perf_counter(), bool(delta.get("content"))))
    thought = [at for at, answering in times if not answering][:40]
    answered = [at for at, answering in times if answering]
    assert thought[-1] - thought[0] < 0.05
    assert answered[-1] - answered[0] > 0.1


def test_a_client_that_leaves_ends_them_all(brisk: str, standin: str) -> None:
    """Nothing runs on at the engine."""

    def stats() -> dict[str, int]:
        told: dict[str, int] = httpx.get(f"{standin}/standin/stats").json()
        return told

    before = stats()
    asked = body(stream=True, **race({"tokens": 4000}, {"tokens": 4000}))
    with httpx.stream("POST", brisk + CHAT, json=asked, timeout=60) as reply:
        received = reply.iter_raw()
        next(received)
        assert stats()["active"] == before["active"] + 2
    limit = time.monotonic() + 5
    while stats()["aborted"] < before["aborted"] + 2:
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_one_trace_where_all_would_be_the_same(brisk: str) -> None:
    """At temperature 0 the traces' own policy judges the only one."""
    reply = chat(brisk, temperature=0, standin={"tokens": 30}, adjourn={"policy": "first-finish"})
    assert "traces" not in reply.json()["adjourn"]


def test_several_choices_are_handed_through(brisk: str, standin: str) -> None:
    """The policy answers with one: who asks for more gets the engine's own."""
    before = metric_value(brisk, "adjourn_passed_through_total", reason="several-choices")
    reply = chat(brisk, n=2, temperature=0.5, standin={"tokens": 30})
    assert reply.headers["x-adjourn-passed-through"] == "several-choices"
    after = metric_value(brisk, "adjourn_passed_through_total", reason="several-choices")
    assert after == before + 1


def test_observing_opens_nothing_on_top(standin: str) -> None:
    """One request at the engine, told as it comes."""
    arguments = ("--policy", "first-finish", "--mode", "observe")
    with start_gateway(standin, free_port(), *arguments) as url:
        ours = raw_stream(url, {"x-request-id": "watched"}, standin={"tokens": 30})
    direct = raw_stream(standin, {"x-request-id": "watched"}, standin={"tokens": 30})
    assert normalize(direct) == normalize(ours)
    asked = [r for r in engine_requests(standin) if r["headers"].get("x-request-id") == "watched"]
    assert len(asked) == 2  # the other one is this test's


def test_a_policy_over_traces_is_a_members_policy_never(adjourn: str) -> None:
    """A 400 that says so."""
    reply = chat(adjourn, adjourn={"policy": "any_of(first-finish, loop)"})
    assert reply.status_code == 400
    assert "goes around it" in reply.json()["error"]["message"]


def test_the_model_is_asked_of_each_answer(adjourn: str, standin: str) -> None:
    """Behind its exact trace and the question; the first sure one ends it, and tokens are told."""
    scenarios = [{**scenario, "trial_logprob": -0.1} for scenario in answers("1", "2", "3")]
    fields = race(*scenarios)
    policy = {"policy": "self-certainty", "window": 3, "threshold": 0.5}
    note = chat(adjourn, **fields, adjourn=policy).json()["adjourn"]
    assert note["policy"] == "self-certainty"
    assert note["reason"] in ("certain", "majority")
    assert note["tokens"]["probe"] > 0


def test_confidence_is_measured_and_not_shown(adjourn: str) -> None:
    """Log-probabilities that only the policy asked for do not reach the client."""
    policy = {"policy": "group-confidence", "warmup": 3, "window": 8, "max": 6}
    reply = chat(adjourn, **race(SHORT, SHORT, SHORT), adjourn=policy).json()
    note = reply["adjourn"]
    assert (note["reason"], note["votes"]) == ("consensus", 3)
    assert all(trace["lowest"] > 0 for trace in note["traces"])
    assert reply["choices"][0]["logprobs"] is None
