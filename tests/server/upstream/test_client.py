"""The calls to the engine: what a probe asks for, what its reply must hold, what is not said."""

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
TRIAL = Probe(max_tokens=8)
USAGE = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}


def asked(
    reply: Any, extra: dict[str, Any] | None = None, status: int = 200, probe: Probe = TRIAL
) -> tuple[dict[str, Any], ProbeResponse]:
    """The probe's body as the engine got it, and what was drawn from this reply."""
    (body,), drawn = probed(lambda body: reply, extra, status, probe)
    return body, drawn


def probed(
    replied: Callable[[dict[str, Any]], Any],
    extra: dict[str, Any] | None = None,
    status: int = 200,
    probe: Probe = TRIAL,
    ending: tuple[int, ...] = (),
) -> tuple[list[dict[str, Any]], ProbeResponse]:
    """The bodies as the engine got them, each of which is ``replied`` to, and what was drawn."""
    seen: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/completions"
        seen.append(json.loads(request.content))
        return httpx.Response(status, content=json.dumps(replied(seen[-1])).encode())

    async def draw() -> ProbeResponse:
        adapter = VLLM(EngineClient(Settings(), httpx.MockTransport(answer)))
        return await adapter.probe("m", [5, 6, 7], probe, [], extra or {}, ending)

    drawn = asyncio.run(draw())
    return seen, drawn


STATES = {"layers": [2, 5], "width": 1, "dtype": "bfloat16", "data": "gD8AQA=="}
ASKED = Probe(inducer="", max_tokens=1, close_trace=False, hidden_states=True)


def test_hidden_states_are_asked_for_and_read() -> None:
    """1 behind the second layer, 2 behind the fifth; nobody else gets them."""
    reply = {"choices": [CHOICE], "kv_transfer_params": {"hidden_states": STATES}}
    body, drawn = asked(reply, probe=ASKED)
    assert body["kv_transfer_params"] == {"hidden_states": True}
    assert drawn.hidden_states is not None
    assert list(drawn.hidden_states.at_layers([2, 5])) == [1.0, 2.0]
    body, drawn = asked(reply)
    assert "kv_transfer_params" not in body
    assert drawn.hidden_states is None


@pytest.mark.parametrize(
    "told",
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
def test_hidden_states_that_are_none_are_a_bad_reply(told: Any) -> None:
    """A stock engine's, one that finished without them, and such as cannot be read."""
    with pytest.raises(BadReply):
        asked({"choices": [CHOICE], "kv_transfer_params": told}, probe=ASKED)


def test_a_probe_is_greedy() -> None:
    """Trap 3: at temperature 0 the token drawn is the most probable, so its probability is the
    maximum; nothing that a client asked for its own stream changes that."""
    body, _ = asked({"choices": [CHOICE]}, {"temperature": 1, "logprobs": 0, "cache_salt": "s"})
    assert body == {
        "cache_salt": "s",
        "model": "m",
        "prompt": [5, 6, 7],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": 1,
    }


def test_what_a_probe_brings() -> None:
    """Tokens and their log-probabilities one to one, and what the cache did not hold."""
    _, drawn = asked({"choices": [CHOICE], "usage": USAGE})
    assert drawn == ProbeResponse("42}", ("4", "2", "}"), (-0.1, -0.2, -0.3), True, 5, decoded=3)


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
def test_a_reply_without_probabilities_is_a_bad_one(reply: Any) -> None:
    """Trap 3: a confidence is never made up of what the engine did not say."""
    with pytest.raises(BadReply):
        asked(reply)


def told(token: int, logprob: float, **top: float) -> dict[str, Any]:
    """A reply of one token, told by ids."""
    ranked = {f"token_id:{name[1:]}": told for name, told in top.items()}
    logprobs = {
        "tokens": [f"token_id:{token}"],
        "token_logprobs": [logprob],
        "top_logprobs": [{f"token_id:{token}": logprob, **ranked}],
    }
    choice = {"index": 0, "text": " So", "logprobs": logprobs, "finish_reason": "length"}
    return {"choices": [choice], "usage": USAGE}


def test_a_distribution_is_asked_for_by_ids() -> None:
    """Tokens that look alike are told apart, and the most probable come first."""
    body, drawn = asked(
        told(8, -2.0, t9=-0.1), probe=Probe(inducer="", max_tokens=1, top_logprobs=20)
    )
    assert (body["logprobs"], body["return_tokens_as_token_ids"]) == (20, True)
    assert drawn.top_logprobs == ((-0.1, -2.0),)
    body, _ = asked({"choices": [CHOICE]}, probe=Probe(top_logprobs=20))
    assert "return_tokens_as_token_ids" not in body  # an answer is read from its tokens' text


ENDING = Probe(inducer="", max_tokens=1, close_trace=False, score_end=True)


def test_the_end_is_scored_token_by_token() -> None:
    """Each is the only choice behind those before it, and its raw log-probability is told beside
    the most probable one's; the field that would tell both takes other requests' away."""
    replies = {10: told(10, -2.0, t9=-0.1), 2: told(2, -0.5)}
    bodies, drawn = probed(
        lambda body: replies[body["allowed_token_ids"][0]], probe=ENDING, ending=(10, 2)
    )
    asked = {(*body["prompt"], *body["allowed_token_ids"]) for body in bodies}
    assert asked == {(5, 6, 7, 10), (5, 6, 7, 10, 2)}
    for body in bodies:
        assert (body["max_tokens"], body["return_tokens_as_token_ids"]) == (1, True)
        assert "logprob_token_ids" not in body
    assert drawn.end_logprob == -2.5
    assert drawn.logprobs == (-0.1,)
    assert (drawn.decoded, drawn.prefilled) == (2, 10)


@pytest.mark.parametrize("reply", [told(9, -0.1), {"choices": [CHOICE]}, {"choices": []}])
def test_an_end_that_is_not_scored_is_a_bad_reply(reply: Any) -> None:
    """An engine that does not know the field is found out, not believed."""
    with pytest.raises(BadReply):
        probed(lambda body: reply, probe=ENDING, ending=(10, 2))


def test_a_probe_that_is_refused() -> None:
    """Any status but 200 is a bad reply."""
    with pytest.raises(BadReply):
        asked({"error": {}}, status=400)


def test_headers_that_go_on() -> None:
    """A client's own headers, less its connection's and those that are the gateway's."""
    names = [b"authorization", b"host", b"x-adjourn-policy", b"accept-encoding", b"te", b"x-a"]
    headers = [(name, b"1") for name in names]
    kept = [b"authorization", b"accept-encoding", b"x-a"]
    assert forwarded_headers(headers) == [(name, b"1") for name in kept]
    theirs = [(b"x-adjourn-policy", b"1"), (b"connection", b"1"), (b"content-type", b"1")]
    assert forwarded_headers(theirs, strip_gateway_headers=False) == [theirs[0], theirs[2]]


def served(use: Callable[[EngineClient], Awaitable[None]]) -> bytes:
    """The head of the request that a real socket gets when ``use`` uses its engine."""
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


def test_the_engine_is_not_asked_to_compress() -> None:
    """A stream that came compressed could be neither read nor cut."""

    async def send(engine: EngineClient) -> None:
        response = await engine.send("POST", "/v1/chat/completions", [], b"{}")
        assert await response.aread() == b"ok"

    head = served(send)
    assert b"gzip" not in head
    assert b"deflate" not in head
