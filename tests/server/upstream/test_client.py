"""Requests to vLLM: the body of a probe, what its reply must contain, which headers are sent on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from adjourn.policies.events import Probe
from adjourn.server.config import Settings
from adjourn.server.engines.adapter import ProbeResponse
from adjourn.server.engines.vllm import VLLM
from adjourn.server.upstream.client import BadReply, EngineClient, forwarded_headers

LOGPROBS = {"tokens": ["4", "2", "}"], "token_logprobs": [-0.1, -0.2, -0.3]}
CHOICE = {"text": "42}", "logprobs": LOGPROBS, "finish_reason": "stop"}
TRIAL_ANSWER = Probe(max_tokens=8)
USAGE = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}


def probe_once(
    reply: Any, extra: dict[str, Any] | None = None, status: int = 200, probe: Probe = TRIAL_ANSWER
) -> tuple[dict[str, Any], ProbeResponse]:
    """The body that the engine received, and the response read from this reply."""
    (body,), response = send_probe(lambda body: reply, extra, status, probe)
    return body, response


def send_probe(
    respond: Callable[[dict[str, Any]], Any],
    extra: dict[str, Any] | None = None,
    status: int = 200,
    probe: Probe = TRIAL_ANSWER,
    ending_ids: tuple[int, ...] = (),
) -> tuple[list[dict[str, Any]], ProbeResponse]:
    """The bodies that the engine received and answered with ``respond``, and the response."""
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/completions"
        bodies.append(json.loads(request.content))
        return httpx.Response(status, content=json.dumps(respond(bodies[-1])).encode())

    async def run() -> ProbeResponse:
        adapter = VLLM(EngineClient(Settings(), httpx.MockTransport(answer)))
        return await adapter.probe("m", [5, 6, 7], probe, [], extra or {}, ending_ids)

    response = asyncio.run(run())
    return bodies, response


STATES = {"layers": [2, 5], "width": 1, "dtype": "bfloat16", "data": "gD8AQA=="}
HIDDEN_STATES = Probe(inducer="", max_tokens=1, close_trace=False, hidden_states=True)


def test_hidden_states_are_requested_and_read() -> None:
    """1 after the second layer, 2 after the fifth. Other probes do not request them."""
    reply = {"choices": [CHOICE], "kv_transfer_params": {"hidden_states": STATES}}
    body, response = probe_once(reply, probe=HIDDEN_STATES)
    assert body["kv_transfer_params"] == {"hidden_states": True}
    assert response.hidden_states is not None
    assert list(response.hidden_states.at_layers([2, 5])) == [1.0, 2.0]
    body, response = probe_once(reply)
    assert "kv_transfer_params" not in body
    assert response.hidden_states is None


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"hidden_states": None},
        {"hidden_states": {**STATES, "data": "AAA="}},
        {"hidden_states": {**STATES, "data": "!"}},
        {"hidden_states": {**STATES, "dtype": "float16"}},
        {"hidden_states": {**STATES, "width": "1"}},
    ],
)
def test_missing_or_invalid_hidden_states_are_a_bad_reply(params: Any) -> None:
    with pytest.raises(BadReply):
        probe_once({"choices": [CHOICE], "kv_transfer_params": params}, probe=HIDDEN_STATES)


def test_a_probe_is_greedy() -> None:
    """At temperature 0 the generated token is the most probable one, so its probability is the
    maximum. Fields of the client's own stream do not change that."""
    body, _ = probe_once(
        {"choices": [CHOICE]}, {"temperature": 1, "logprobs": 0, "cache_salt": "s"}
    )
    assert body == {
        "cache_salt": "s",
        "model": "m",
        "prompt": [5, 6, 7],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": 1,
    }


def test_a_probe_returns_tokens_logprobs_and_costs() -> None:
    """One log-probability per token, and the prompt tokens that the cache did not hold."""
    _, response = probe_once({"choices": [CHOICE], "usage": USAGE})
    assert response == ProbeResponse("42}", ("4", "2", "}"), (-0.1, -0.2, -0.3), True, 5, decoded=3)


@pytest.mark.parametrize(
    "reply",
    [
        {},
        [],
        {"choices": []},
        {"choices": [{"text": "42"}]},
        {"choices": [{**CHOICE, "logprobs": None}]},
        {"choices": [{**CHOICE, "logprobs": {**LOGPROBS, "token_logprobs": [-0.1, None, -0.3]}}]},
        {"choices": [{**CHOICE, "logprobs": {**LOGPROBS, "token_logprobs": [-0.1]}}]},
    ],
)
def test_a_reply_without_logprobs_is_a_bad_reply(reply: Any) -> None:
    """A confidence is never computed from missing values."""
    with pytest.raises(BadReply):
        probe_once(reply)


def make_score(token: int, logprob: float, **top: float) -> dict[str, Any]:
    """A reply with one token, named by its id; ``top`` are other tokens at this position."""
    ranked = {f"token_id:{name[1:]}": value for name, value in top.items()}
    logprobs = {
        "tokens": [f"token_id:{token}"],
        "token_logprobs": [logprob],
        "top_logprobs": [{f"token_id:{token}": logprob, **ranked}],
    }
    choice = {"index": 0, "text": " So", "logprobs": logprobs, "finish_reason": "length"}
    return {"choices": [choice], "usage": USAGE}


def test_a_distribution_is_requested_by_token_ids() -> None:
    """Different tokens may have the same text. The most probable come first."""
    body, response = probe_once(
        make_score(8, -2.0, t9=-0.1), probe=Probe(inducer="", max_tokens=1, top_logprobs=20)
    )
    assert (body["logprobs"], body["return_tokens_as_token_ids"]) == (20, True)
    assert response.top_logprobs == ((-0.1, -2.0),)
    body, _ = probe_once({"choices": [CHOICE]}, probe=Probe(top_logprobs=20))
    assert "return_tokens_as_token_ids" not in body  # a trial answer is read from its text


END_SCORE = Probe(inducer="", max_tokens=1, close_trace=False, score_end=True)


def test_the_end_is_scored_token_by_token() -> None:
    """Each token is the only one allowed after those before it, and the reply contains its
    log-probability and that of the most probable token. vLLM's field ``logprob_token_ids`` is not
    used, since it removes the log-probabilities of concurrent requests."""
    replies = {10: make_score(10, -2.0, t9=-0.1), 2: make_score(2, -0.5)}
    bodies, response = send_probe(
        lambda body: replies[body["allowed_token_ids"][0]], probe=END_SCORE, ending_ids=(10, 2)
    )
    sequences = {(*body["prompt"], *body["allowed_token_ids"]) for body in bodies}
    assert sequences == {(5, 6, 7, 10), (5, 6, 7, 10, 2)}
    for body in bodies:
        assert (body["max_tokens"], body["return_tokens_as_token_ids"]) == (1, True)
        assert "logprob_token_ids" not in body
    assert response.end_logprob == -2.5
    assert response.logprobs == (-0.1,)
    assert (response.decoded, response.prefilled) == (2, 10)


@pytest.mark.parametrize("reply", [make_score(9, -0.1), {"choices": [CHOICE]}, {"choices": []}])
def test_an_end_that_is_not_scored_is_a_bad_reply(reply: Any) -> None:
    """An engine that ignores ``allowed_token_ids`` generates other tokens."""
    with pytest.raises(BadReply):
        send_probe(lambda body: reply, probe=END_SCORE, ending_ids=(10, 2))


def test_a_refused_probe_is_a_bad_reply() -> None:
    """Any status other than 200."""
    with pytest.raises(BadReply):
        probe_once({"error": {}}, status=400)


def test_headers_of_the_connection_and_of_the_gateway_are_not_forwarded() -> None:
    names = [b"authorization", b"host", b"x-adjourn-policy", b"accept-encoding", b"te", b"x-a"]
    headers = [(name, b"1") for name in names]
    kept = [b"authorization", b"accept-encoding", b"x-a"]
    assert forwarded_headers(headers) == [(name, b"1") for name in kept]
    others = [(b"x-adjourn-policy", b"1"), (b"connection", b"1"), (b"content-type", b"1")]
    assert forwarded_headers(others, strip_gateway_headers=False) == [others[0], others[2]]


def capture_head(use: Callable[[EngineClient], Awaitable[None]]) -> bytes:
    """The head of the request that ``use`` sends through a real socket."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            engine = EngineClient(Settings(upstream=f"http://127.0.0.1:{port}"))  # type: ignore[arg-type]
            await use(engine)
            await engine.aclose()

    asyncio.run(run())
    return heads[0].lower()


def test_no_compression_is_requested() -> None:
    """A compressed stream could be neither read nor cut."""

    async def send(engine: EngineClient) -> None:
        response = await engine.send("POST", "/v1/chat/completions", [], b"{}")
        assert await response.aread() == b"ok"

    head = capture_head(send)
    assert b"gzip" not in head
    assert b"deflate" not in head
