"""Policies over several traces (races and votes): the client gets one ordinary response."""

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
    """A request whose i-th trace runs the i-th scenario."""
    by_seed = [[7 + i, scenario] for i, scenario in enumerate(scenarios)]
    return {"seed": 7, "standin": {"rate": 400, "by_seed": by_seed}, **fields}


def joined(chunks: list[Any], key: str) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join(delta.get(key) or "" for delta in deltas)


LONG, SHORT = {"tokens": 400}, {"tokens": 20, "answer": "The answer is 7."}


def test_the_client_gets_the_first_trace_that_ends(adjourn: str, standin: str) -> None:
    """Byte for byte as if it were the only trace, under the client's own id, except for the
    summary."""
    fields = race(LONG, SHORT, LONG, adjourn=RACE, **USAGE)
    headers = {"x-request-id": "raced"}
    ours = stream(adjourn, headers, **fields)
    alone = stream(standin, headers, seed=8, standin=fields["standin"], **USAGE)
    summary = ours[-2].pop("adjourn")
    for chunk in (*alone, *ours):
        if chunk != "[DONE]":
            chunk["created"] = 0
    assert alone == ours
    assert (summary["policy"], summary["chosen"]) == ("first-finish", 1)
    assert [trace["outcome"] for trace in summary["traces"]] == ["given-up", "chosen", "given-up"]


def test_losing_traces_are_aborted_at_once(adjourn: str, standin: str) -> None:
    """Their few tokens count as wasted, in the summary and in the metrics."""
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
def test_an_unstreamed_response_has_the_engines_shape(
    adjourn: str, standin: str, policy: str
) -> None:
    """The keys and values of a response without the gateway, plus the summary."""
    fields = race(SHORT, SHORT, SHORT, SHORT, SHORT)
    ours = chat(adjourn, **fields, adjourn={"policy": policy}).json()
    alone = chat(standin, **fields).json()
    summary = ours.pop("adjourn")
    assert list(alone) == list(ours)
    assert alone["choices"] == ours["choices"]
    assert alone["usage"] == ours["usage"]
    assert summary["policy"] == policy


def answers(*texts: str) -> list[dict[str, Any]]:
    return [{"tokens": 20, "answer": text} for text in texts]


def test_a_unanimous_window_ends_the_vote(adjourn: str, standin: str) -> None:
    """No further trace is opened. Answers are compared by value, not by spelling."""
    fields = race(*answers("The answer is 0.5.", "\\boxed{\\frac{1}{2}}", "\\boxed{1/2}"))
    policy = {"policy": "early-consistency", "window": 3, "max": 9}
    reply = chat(adjourn, {"x-request-id": "alike"}, **fields, adjourn=policy).json()
    summary = reply["adjourn"]
    assert (summary["reason"], summary["votes"], len(summary["traces"])) == ("unanimous", 3, 3)
    sent = [
        r
        for r in engine_requests(standin)
        if r["headers"].get("x-request-id", "").startswith("alike")
    ]
    assert sorted(json.loads(r["body"])["seed"] for r in sent) == [7, 8, 9]
    assert len({r["headers"]["x-session-id"] for r in sent}) == 1


def test_the_client_gets_the_majority_answer(adjourn: str) -> None:
    """Counted over all windows; the response is the first trace with that answer."""
    fields = race(*answers("1", "2", "2", "3", "2"))
    policy = {"policy": "early-consistency", "window": 2, "max": 5}
    reply = chat(adjourn, **fields, adjourn=policy).json()
    assert reply["choices"][0]["message"]["content"].strip() == "2"
    assert reply["adjourn"]["votes"] >= 2
    assert reply["adjourn"]["chosen"] == 1


def test_each_trace_runs_its_own_inner_policy(adjourn: str) -> None:
    """``early-consistency(budget)``: every trace is cut, and usage is that of the chosen one."""
    fields = race(LONG, LONG, LONG)
    policy = {"policy": "early-consistency(budget(max=30, grace=0), window=3)"}
    chunks = stream(adjourn, **fields, adjourn=policy, **USAGE)
    summary, usage = chunks[-2]["adjourn"], chunks[-2]["usage"]
    assert summary["stopped"] is True
    assert [trace["position"] for trace in summary["traces"]] == [30, 30, 30]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 30
    assert usage["total_tokens"] == usage["completion_tokens"] + usage["prompt_tokens"]
    assert summary["tokens"]["wasted"] > 60
    assert chunks.count("[DONE]") == 1
    assert len({c["id"] for c in chunks if c != "[DONE]"}) == 1


def test_algebraically_equal_answers_vote_together(adjourn: str) -> None:
    """Compared by the algebra library, in a separate process."""
    texts = "\\boxed{3}", "\\boxed{\\sqrt{8}}", "\\boxed{2\\sqrt{2}}"
    policy = {"policy": "early-consistency", "window": 3, "max": 3}
    summary = chat(adjourn, **race(*answers(*texts)), adjourn=policy).json()["adjourn"]
    assert (summary["chosen"], summary["votes"]) == (1, 2)
    assert [trace["answer"] for trace in summary["traces"]] == [0, 1, 1]


def test_the_race_continues_when_a_trace_fails(adjourn: str) -> None:
    """Whether the engine refused it or its stream broke."""
    fields = race({"status": 429}, {"tokens": 60, "die_after": 9}, SHORT)
    reply = chat(adjourn, **fields, adjourn=RACE)
    assert reply.status_code == 200
    outcomes = [trace["outcome"] for trace in reply.json()["adjourn"]["traces"]]
    assert outcomes == ["failed", "failed", "chosen"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("policy", ["first-finish", "early-consistency"])
def test_an_engine_error_on_every_trace_is_returned(
    adjourn: str, standin: str, streamed: bool, policy: str
) -> None:
    """Once and unmodified."""
    fields = {"stream": streamed, "standin": {"status": 429, "retry_after": 7}}
    direct, ours = chat(standin, **fields), chat(adjourn, adjourn={"policy": policy}, **fields)
    assert (direct.status_code, direct.content) == (ours.status_code, ours.content)


def test_502_when_every_trace_breaks(adjourn: str) -> None:
    """Nothing was sent yet; after a window without any answer no further traces are opened."""
    fields = {"standin": {"tokens": 60, "die_after": 9}}
    policy = {"policy": "early-consistency", "window": 3}
    failed = metric_value(adjourn, "adjourn_traces_total", outcome="failed")
    assert chat(adjourn, adjourn=policy, **fields).status_code == 502
    assert metric_value(adjourn, "adjourn_traces_total", outcome="failed") == failed + 3


def test_a_chosen_trace_whose_stream_breaks_ends_the_response(adjourn: str) -> None:
    """As with a single trace: an error event, no [DONE], a closed connection."""
    fields = race(LONG, {"tokens": 20, "die_after": 24}, LONG)
    received: list[bytes] = []

    def read() -> None:
        request = body(stream=True, adjourn=RACE, **fields)
        with httpx.stream("POST", adjourn + CHAT, json=request) as reply:
            received.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    chunks = events(b"".join(received))
    assert chunks[-1]["error"]["type"] == "upstream_error"
    assert "[DONE]" not in chunks


@pytest.fixture(scope="module")
def racing_gateway(standin: str) -> Iterator[str]:
    """A gateway that races two traces by default and sends keep-alive comments every 50 ms."""
    arguments = ("--policy", "first-finish(traces=2)", "--hold-out", "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADJOURN_KEEP_ALIVE", "0.05")
        with start_gateway(standin, free_port(), *arguments) as url:
            yield url


def test_keep_alive_comments_during_a_race(racing_gateway: str) -> None:
    """They stop once a trace is chosen."""
    raw = raw_stream(racing_gateway, **race({"tokens": 120}, {"tokens": 120}))
    comments = raw.count(b": racing\n\n")
    assert comments >= 3
    assert b": racing" not in raw[raw.index(b"data:") :]


def test_the_chosen_traces_answer_is_streamed_live(racing_gateway: str) -> None:
    """Its buffered reasoning is sent at once, and its answer as the engine decodes it."""
    fields = race({"tokens": 40, "answer_tokens": 80}, LONG)
    times: list[tuple[float, bool]] = []
    with httpx.stream(
        "POST", racing_gateway + CHAT, json=body(stream=True, **fields), timeout=60
    ) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                times.append((time.perf_counter(), bool(delta.get("content"))))
    reasoning_times = [at for at, is_answer in times if not is_answer][:40]
    answer_times = [at for at, is_answer in times if is_answer]
    assert reasoning_times[-1] - reasoning_times[0] < 0.05
    assert answer_times[-1] - answer_times[0] > 0.1


def test_a_client_disconnect_aborts_all_traces(racing_gateway: str, standin: str) -> None:
    """No request keeps running at the engine."""

    def stats() -> dict[str, int]:
        counters: dict[str, int] = httpx.get(f"{standin}/standin/stats").json()
        return counters

    before = stats()
    request = body(stream=True, **race({"tokens": 4000}, {"tokens": 4000}))
    with httpx.stream("POST", racing_gateway + CHAT, json=request, timeout=60) as reply:
        received = reply.iter_raw()
        next(received)
        assert stats()["active"] == before["active"] + 2
    deadline = time.monotonic() + 5
    while stats()["aborted"] < before["aborted"] + 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_temperature_0_runs_one_trace(racing_gateway: str) -> None:
    """All traces would be equal: only the inner policy runs, on a single trace."""
    reply = chat(
        racing_gateway, temperature=0, standin={"tokens": 30}, adjourn={"policy": "first-finish"}
    )
    assert "traces" not in reply.json()["adjourn"]


def test_several_choices_pass_through(racing_gateway: str, standin: str) -> None:
    """The policy returns one choice: a request for more gets the engine's own response."""
    before = metric_value(racing_gateway, "adjourn_passed_through_total", reason="several-choices")
    reply = chat(racing_gateway, n=2, temperature=0.5, standin={"tokens": 30})
    assert reply.headers["x-adjourn-passed-through"] == "several-choices"
    after = metric_value(racing_gateway, "adjourn_passed_through_total", reason="several-choices")
    assert after == before + 1


def test_observe_mode_opens_no_extra_trace(standin: str) -> None:
    """One request at the engine, streamed live."""
    arguments = ("--policy", "first-finish", "--mode", "observe")
    with start_gateway(standin, free_port(), *arguments) as url:
        ours = raw_stream(url, {"x-request-id": "watched"}, standin={"tokens": 30})
    direct = raw_stream(standin, {"x-request-id": "watched"}, standin={"tokens": 30})
    assert normalize(direct) == normalize(ours)
    received = [
        r for r in engine_requests(standin) if r["headers"].get("x-request-id") == "watched"
    ]
    assert len(received) == 2  # one of them is the direct request above


def test_a_parallel_policy_cannot_be_composed(adjourn: str) -> None:
    """Inside ``any_of`` it is a 400 with an explanation."""
    reply = chat(adjourn, adjourn={"policy": "any_of(first-finish, loop)"})
    assert reply.status_code == 400
    assert "takes policies of one trace" in reply.json()["error"]["message"]


def test_self_certainty_asks_the_model_about_each_answer(adjourn: str, standin: str) -> None:
    """Each question follows its trace's exact ids; the first certain answer ends the vote, and the
    probe tokens are in the summary."""
    scenarios = [{**scenario, "trial_logprob": -0.1} for scenario in answers("1", "2", "3")]
    fields = race(*scenarios)
    policy = {"policy": "self-certainty", "window": 3, "threshold": 0.5}
    summary = chat(adjourn, **fields, adjourn=policy).json()["adjourn"]
    assert summary["policy"] == "self-certainty"
    assert summary["reason"] in ("certain", "majority")
    assert summary["tokens"]["probe"] > 0


def test_log_probabilities_of_the_policy_are_not_sent(adjourn: str) -> None:
    """``group-confidence`` reads them; the client did not ask for them."""
    policy = {"policy": "group-confidence", "warmup": 3, "window": 8, "max": 6}
    reply = chat(adjourn, **race(SHORT, SHORT, SHORT), adjourn=policy).json()
    summary = reply["adjourn"]
    assert (summary["reason"], summary["votes"]) == ("consensus", 3)
    assert all(trace["lowest"] > 0 for trace in summary["traces"])
    assert reply["choices"][0]["logprobs"] is None
