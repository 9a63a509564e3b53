"""A response that no policy stops reaches the client as the engine sent it."""

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
    "a cue without a confident probe": {"cues": [10], "trial_logprob": -1.0},
    "several tokens a chunk": {"multi": 4},
    "both fields in one chunk": {"both_fields": True},
    "characters cut in two": {"split_utf8": True},
    "the model opens its trace": {"writes_marker": True},
    "chunks without text": {"empty": 3},
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
    """The token ids that only the gateway asked for are removed."""
    fields = {"standin": {"tokens": 40, **scenario}}
    if usage:
        fields["stream_options"] = {"include_usage": True}
    assert normalize(raw_stream(standin, **fields)) == normalize(raw_stream(adjourn, **fields))


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_an_unstopped_response_is_the_engines(
    adjourn: str, standin: str, scenario: dict[str, object]
) -> None:
    """The gateway assembles it from a stream, with the keys and values of a direct response."""
    fields = {"standin": {"tokens": 40, **scenario}}
    direct, ours = chat(standin, **fields), chat(adjourn, **fields)
    assert normalize(direct.content) == normalize(ours.content)


@pytest.mark.parametrize("wanted", ["return_token_ids", "logprobs"])
def test_requested_ids_and_logprobs_are_kept(adjourn: str, standin: str, wanted: str) -> None:
    """When the client itself asked for them."""
    fields = {wanted: True, "standin": {"tokens": 20}}
    assert normalize(raw_stream(standin, **fields)) == normalize(raw_stream(adjourn, **fields))
    if wanted == "return_token_ids":  # the stand-in has no unstreamed log-probabilities
        assert normalize(chat(standin, **fields).content) == normalize(
            chat(adjourn, **fields).content
        )


def test_hidden_reasoning_stays_hidden(adjourn: str) -> None:
    """A client that asked for no reasoning gets none, and no token ids that would reveal it."""
    raw = raw_stream(adjourn, include_reasoning=False, standin={"tokens": 20})
    assert b"reasoning" not in raw
    assert b'"token_ids":[' not in raw
    assert b"The" in raw


@pytest.mark.parametrize("streamed", [False, True])
def test_off_passes_everything_through(adjourn: str, standin: str, streamed: bool) -> None:
    """The policy `off` changes nothing in the response."""
    fields = {"stream": streamed, "standin": {"tokens": 30, "cues": [10]}}
    ours = chat(adjourn, {"x-adjourn-policy": "off"}, **fields)
    assert normalize(chat(standin, **fields).content) == normalize(ours.content)
    assert ours.headers["x-adjourn-policy"] == "off"


def test_request_fields_are_not_re_encoded(adjourn: str, standin: str) -> None:
    """Numbers keep their digits, and objects the order of their keys."""
    text = (
        '{"model":"standin","messages":[{"role":"user","content":"h\\u00e9"}],"odd":1.10e2,'
        '"big":123456789012345678901234567890,"nested":{"b":1,"a":[2.50]},"standin":{"tokens":3}}'
    )
    httpx.post(adjourn + CHAT, content=text, headers={"content-type": "application/json"})
    received = engine_requests(standin)[-1]["body"]
    for written in ("1.10e2", "123456789012345678901234567890", "2.50", "h\\u00e9"):
        assert written in received


def test_headers_are_forwarded_both_ways(adjourn: str, standin: str) -> None:
    """Credentials and routing headers reach the engine; the request id is returned."""
    headers = {
        "authorization": "Bearer secret",
        "x-session-id": "talk-7",
        "x-request-id": "mine-1",
        "x-data-parallel-rank": "0",
    }
    reply = chat(adjourn, headers, standin={"tokens": 3})
    assert reply.headers["x-request-id"] == "mine-1"
    assert reply.json()["id"] == "chatcmpl-mine-1"
    received = str(engine_requests(standin)[-1]["headers"])
    for value in ("Bearer secret", "talk-7", "mine-1"):
        assert value in received


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/v1/nothing-here", "/tokenize"])
def test_other_paths_are_forwarded(adjourn: str, standin: str, path: str) -> None:
    """With the engine's status and body, errors included."""
    direct, ours = httpx.get(standin + path), httpx.get(adjourn + path)
    assert direct.status_code == ours.status_code
    assert normalize(direct.content) == normalize(ours.content)


def test_completions_have_the_engines_choices(adjourn: str, standin: str) -> None:
    """On `/v1/completions`."""
    request = {"model": "standin", "prompt": [5, 6, 7], "max_tokens": 3, "logprobs": 1}
    direct = httpx.post(f"{standin}/v1/completions", json=request).json()
    ours = httpx.post(f"{adjourn}/v1/completions", json=request).json()
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
def test_ineligible_requests_pass_through_with_the_reason(
    adjourn: str, fields: dict[str, object], reason: str
) -> None:
    """In the header `x-adjourn-passed-through`."""
    request = body(**{"standin": {"tokens": 3}, **fields})
    reply = httpx.post(adjourn + CHAT, json=request)
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
def test_requests_with_images_or_audio_pass_through(
    adjourn: str, standin: str, messages: list[object], streamed: bool
) -> None:
    """Engines silently ignore prompt ids in such a request, so it cannot be resumed after a cut.
    The body arrives unmodified, the response is the engine's, and the reason is counted."""
    before = metric_value(adjourn, "adjourn_passed_through_total", reason="not-text")
    payload = body(messages=messages, stream=streamed, unknown={"kept": [1]}, standin={"tokens": 5})
    direct, ours = (httpx.post(url + CHAT, json=payload) for url in (standin, adjourn))
    assert normalize(direct.content) == normalize(ours.content)
    assert ours.headers["x-adjourn-passed-through"] == "not-text"
    theirs, forwarded = (json.loads(request["body"]) for request in engine_requests(standin)[-2:])
    assert theirs == forwarded
    assert metric_value(adjourn, "adjourn_passed_through_total", reason="not-text") == before + 1
