"""What no policy stopped reaches the client as the engine sent it."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.gateway_client import (
    CHAT,
    body,
    chat,
    engine_requests,
    metric_value,
    normalize,
    raw_stream,
)

SCENARIOS = {
    "plain": {},
    "a cue that convinces nobody": {"cues": [10], "trial_logprob": -1.0},
    "several tokens a chunk": {"multi": 4},
    "both fields in one chunk": {"both_fields": True},
    "characters cut in two": {"split_utf8": True},
    "the model opens its trace": {"writes_marker": True},
    "texts held back": {"empty": 3},
    "carriage returns": {"crlf": True},
    "keep-alive comments": {"comments": 4},
    "tiny writes": {"tiny_writes": True, "seed": 5},
    "no trace": {"tokens": 0},
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
@pytest.mark.parametrize("usage", [False, True], ids=["", "usage"])
def test_an_unstopped_stream_is_the_engines_byte_for_byte(
    adjourn: str, standin: str, scenario: dict[str, object], usage: bool
) -> None:
    """Token ids that the gateway asked for on top are taken out again."""
    fields = {"standin": {"tokens": 40, **scenario}}
    if usage:
        fields["stream_options"] = {"include_usage": True}
    assert normalize(raw_stream(standin, **fields)) == normalize(raw_stream(adjourn, **fields))


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_an_unstopped_reply_is_the_engines(
    adjourn: str, standin: str, scenario: dict[str, object]
) -> None:
    """An unstreamed reply, put together from a stream, has the keys and values of a direct one."""
    fields = {"standin": {"tokens": 40, **scenario}}
    direct, ours = chat(standin, **fields), chat(adjourn, **fields)
    assert normalize(direct.content) == normalize(ours.content)


@pytest.mark.parametrize("wanted", ["return_token_ids", "logprobs"])
def test_what_the_client_asked_for_itself_stays(adjourn: str, standin: str, wanted: str) -> None:
    """Ids and log-probabilities are the client's when it asks for them."""
    fields = {wanted: True, "standin": {"tokens": 20}}
    assert normalize(raw_stream(standin, **fields)) == normalize(raw_stream(adjourn, **fields))
    if wanted == "return_token_ids":  # the stand-in has no unstreamed log-probabilities
        assert normalize(chat(standin, **fields).content) == normalize(
            chat(adjourn, **fields).content
        )


def test_hidden_reasoning_stays_hidden(adjourn: str) -> None:
    """A client that wants no reasoning gets none, and no ids that give it away."""
    raw = raw_stream(adjourn, include_reasoning=False, standin={"tokens": 20})
    assert b"reasoning" not in raw
    assert b'"token_ids":[' not in raw
    assert b"The" in raw


@pytest.mark.parametrize("streamed", [False, True])
def test_off_hands_everything_through(adjourn: str, standin: str, streamed: bool) -> None:
    """`off` turns the gateway into a wire."""
    fields = {"stream": streamed, "standin": {"tokens": 30, "cues": [10]}}
    ours = chat(adjourn, {"x-adjourn-policy": "off"}, **fields)
    assert normalize(chat(standin, **fields).content) == normalize(ours.content)
    assert ours.headers["x-adjourn-policy"] == "off"


def test_unknown_fields_reach_the_engine_as_they_were_written(adjourn: str, standin: str) -> None:
    """Values are not re-encoded: numbers keep their digits, keys their order."""
    text = (
        '{"model":"standin","messages":[{"role":"user","content":"h\\u00e9"}],"odd":1.10e2,'
        '"big":123456789012345678901234567890,"nested":{"b":1,"a":[2.50]},"standin":{"tokens":3}}'
    )
    httpx.post(adjourn + CHAT, content=text, headers={"content-type": "application/json"})
    seen = engine_requests(standin)[-1]["body"]
    for piece in ("1.10e2", "123456789012345678901234567890", "2.50", "h\\u00e9"):
        assert piece in seen


def test_headers_go_both_ways(adjourn: str, standin: str) -> None:
    """Credentials and routing headers reach the engine; the request id comes back."""
    headers = {
        "authorization": "Bearer secret",
        "x-session-id": "talk-7",
        "x-request-id": "mine-1",
        "x-data-parallel-rank": "0",
    }
    reply = chat(adjourn, headers, standin={"tokens": 3})
    assert reply.headers["x-request-id"] == "mine-1"
    assert reply.json()["id"] == "chatcmpl-mine-1"
    seen = str(engine_requests(standin)[-1]["headers"])
    for value in ("Bearer secret", "talk-7", "mine-1"):
        assert value in seen


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/v1/nothing-here", "/tokenize"])
def test_other_paths_are_the_engines(adjourn: str, standin: str, path: str) -> None:
    """Status and body of every other path are the engine's own, errors included."""
    direct, ours = httpx.get(standin + path), httpx.get(adjourn + path)
    assert direct.status_code == ours.status_code
    assert normalize(direct.content) == normalize(ours.content)


def test_completions_are_handed_through(adjourn: str, standin: str) -> None:
    """`/v1/completions` is the engine's."""
    asked = {"model": "standin", "prompt": [5, 6, 7], "max_tokens": 3, "logprobs": 1}
    direct = httpx.post(f"{standin}/v1/completions", json=asked).json()
    ours = httpx.post(f"{adjourn}/v1/completions", json=asked).json()
    assert direct["choices"] == ours["choices"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n": 200}, "several-choices"),
        ({"echo": True}, "echo"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "not-text",
        ),
    ],
)
def test_what_cannot_be_judged_is_handed_through_and_said(
    adjourn: str, fields: dict[str, object], reason: str
) -> None:
    """A request that no policy may touch goes through, and a header says why."""
    asked = body(**{"standin": {"tokens": 3}, **fields})
    reply = httpx.post(adjourn + CHAT, json=asked)
    assert reply.headers["x-adjourn-passed-through"] == reason


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
FILM = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, PICTURE, PICTURE]}],
        [{"role": "user", "content": [SOUND]}],
        [{"role": "user", "content": [FILM]}, {"role": "user", "content": "And that?"}],
        [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": [PICTURE]},
        ],
    ],
    ids=["images", "audio", "an earlier video", "a tool's image"],
)
def test_images_and_sounds_are_handed_through(
    adjourn: str, standin: str, messages: list[object], streamed: bool
) -> None:
    """An engine drops the ids of such a request without a word, so nothing of it is cut: the body
    arrives as it was written, the reply is the engine's, and the reason is counted."""
    before = metric_value(adjourn, "adjourn_passed_through_total", reason="not-text")
    asked = body(messages=messages, stream=streamed, unknown={"kept": [1]}, standin={"tokens": 5})
    direct, ours = (httpx.post(url + CHAT, json=asked) for url in (standin, adjourn))
    assert normalize(direct.content) == normalize(ours.content)
    assert ours.headers["x-adjourn-passed-through"] == "not-text"
    theirs, through = (json.loads(request["body"]) for request in engine_requests(standin)[-2:])
    assert theirs == through
    assert metric_value(adjourn, "adjourn_passed_through_total", reason="not-text") == before + 1
