"""The stand-in sends what vLLM 0.32 sends: compared with bytes recorded from vLLM."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
HEAD = (
    '{"id":"chatcmpl-x","object":"chat.completion.chunk","created":0,"model":"standin","choices":['
)
WITH_IDS = {"return_token_ids": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.standin", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().rsplit(":", 1)[1])
        finally:
            process.terminate()


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body)
    connection.request(method, path, sent, {"x-request-id": "x"})
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def post(port: int, path: str, **body: Any) -> Any:
    return json.loads(ask(port, "POST", path, body)[1])


def stream(port: int, standin: dict[str, Any], **body: Any) -> list[str]:
    """The data of a stream's events, with `created` set to 0."""
    request = {**HELLO, "stream": True, "standin": standin, **body}
    text = ask(port, "POST", CHAT, request)[1].decode().replace("\r\n", "\n")
    events = [event for event in text.split("\n\n") if event.startswith("data: ")]
    return [_without_time(event.removeprefix("data: ")) for event in events]


def _without_time(data: str) -> str:
    before, key, after = data.partition('"created":')
    return before + key + "0" + after[after.index(",") :] if key else data


def texts(events: list[str]) -> tuple[str, str]:
    deltas = [c["delta"] for e in events if e[0] == "{" for c in json.loads(e)["choices"]]
    return (
        "".join(d.get("reasoning") or "" for d in deltas),
        "".join(d.get("content") or "" for d in deltas),
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stats(port: int) -> dict[str, Any]:
    return json.loads(ask(port, "GET", "/standin/stats")[1])


def test_a_stream_with_ids_has_the_keys_and_order_of_vllm(port: int) -> None:
    events = stream(port, {"tokens": 2, "cues": [0], "answer": "42"}, **WITH_IDS)
    null = '"logprobs":null,"finish_reason":null'
    prompt = json.loads(events[0])["prompt_token_ids"]
    ids = json.dumps(prompt).replace(" ", "")
    assert events == [
        f'{HEAD}{{"index":0,"delta":{{"role":"assistant","content":""}},{null}}}],'
        f'"prompt_token_ids":{ids},"prompt_text":null}}',
        f'{HEAD}{{"index":0,"delta":{{"reasoning":" Wait"}},{null},"token_ids":[379]}}]}}',
        f'{HEAD}{{"index":0,"delta":{{"reasoning":","}},{null},"token_ids":[368]}}]}}',
        f'{HEAD}{{"index":0,"delta":{{}},{null},"token_ids":[2]}}]}}',
        f'{HEAD}{{"index":0,"delta":{{"content":"\\n\\n"}},{null},"token_ids":[271]}}]}}',
        f'{HEAD}{{"index":0,"delta":{{"content":"4"}},{null},"token_ids":[372]}}]}}',
        f'{HEAD}{{"index":0,"delta":{{"content":"2"}},{null},"token_ids":[370]}}]}}',
        f'{HEAD}{{"index":0,"delta":{{"content":""}},"logprobs":null,"finish_reason":"stop",'
        '"stop_reason":null,"token_ids":[3]}]}',
        f'{HEAD}],"usage":{{"prompt_tokens":{len(prompt)},"total_tokens":{len(prompt) + 7},'
        '"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":0,'
        '"created_cache_tokens":0},"completion_tokens_details":{"reasoning_tokens":2}},'
        '"system_fingerprint":"vllm-0.32.0-0a7cf6da"}',
        "[DONE]",
    ]


def test_fields_not_requested_are_null_and_the_end_marker_has_no_chunk(port: int) -> None:
    events = stream(port, {"tokens": 1, "cues": [0], "answer": "4"})
    assert events[0].endswith('}],"prompt_token_ids":null,"prompt_text":null}')
    assert events[1].endswith('"finish_reason":null,"token_ids":null}]}')
    assert json.loads(events[2])["choices"][0]["delta"] == {"content": "\n\n"}
    assert events[-2].endswith('"token_ids":null}],"system_fingerprint":"vllm-0.32.0-0a7cf6da"}')
    assert events[-1] == "[DONE]"


def test_prompt_ids_with_a_closed_trace_are_followed_by_the_answer(port: int) -> None:
    ids = [4, 1, 300, 198, 2, 271]
    more = {**WITH_IDS, "kv_transfer_params": {"prompt_token_ids": ids}}
    events = stream(port, {"answer": "42"}, **more)
    assert json.loads(events[0])["prompt_token_ids"] == ids
    assert texts(events) == ("", "42")
    ignored = stream(port, {"tokens": 1, "ignore_prompt_ids": True}, **more)
    assert json.loads(ignored[0])["prompt_token_ids"] != ids
    assert texts(ignored)[0]


@pytest.mark.parametrize(
    "form",
    [
        {"tiny_writes": True, "split_utf8": True},
        {"crlf": True, "comments": 2},
        {"multi": 7},
        {"both_fields": True},
        {"usage_each": True},
        {"rate": 2000},
    ],
)
def test_every_form_of_the_stream_has_the_same_text(port: int, form: dict[str, Any]) -> None:
    plain = {"tokens": 60, "cues": [10], "answer": "≈ 42"}
    assert texts(stream(port, plain | form, **WITH_IDS)) == texts(stream(port, plain))


def test_an_unstreamed_response_has_the_text_of_the_stream(port: int) -> None:
    reasoning, content = texts(stream(port, {"tokens": 9}))
    response = post(port, CHAT, **HELLO, standin={"tokens": 9})
    assert list(response)[:5] == ["id", "object", "created", "model", "choices"]
    message = response["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (reasoning, content)


def test_max_tokens_ends_a_stream_with_its_last_token(port: int) -> None:
    last = json.loads(stream(port, {"tokens": 9}, max_tokens=3)[-2])["choices"][0]
    assert last["finish_reason"] == "length"
    assert last["delta"]["reasoning"]


def test_a_probe_uses_its_chats_scenario_and_each_new_position_the_next_trial(
    port: int,
) -> None:
    events = stream(port, {"trial": ["41", "42"], "trial_logprob": -0.5}, **WITH_IDS)
    prompt = json.loads(events[0])["prompt_token_ids"]
    answers = []
    for length in (10, 10, 20):
        probe = {"prompt": prompt + [300] * length, "max_tokens": 2, "logprobs": 1}
        answers.append(post(port, "/v1/completions", **probe)["choices"][0])
    assert [answer["text"] for answer in answers] == ["41", "41", "42"]
    assert answers[0]["logprobs"]["token_logprobs"] == [-0.5, -0.5]


def test_the_closing_sequence_has_three_token_ids(port: int) -> None:
    assert post(port, "/tokenize", prompt="\n</think>\n\n")["tokens"] == [198, 2, 271]
    ids = post(port, "/tokenize", prompt="Zwölf Boxer: \\boxed{")["tokens"]
    assert post(port, "/detokenize", tokens=ids)["prompt"] == "Zwölf Boxer: \\boxed{"


def test_a_stream_has_the_faults_of_its_scenario(port: int) -> None:
    error = stream(port, {"tokens": 5, "error_event_after": 2})
    assert json.loads(error[-2])["error"]["type"] == "InternalServerError"
    assert error[-1] == "[DONE]"
    assert stream(port, {"tokens": 5, "no_done": True})[-1] != "[DONE]"
    with pytest.raises(http.client.IncompleteRead):
        stream(port, {"tokens": 5, "die_after": 2})


def test_errors_have_the_shape_of_vllm(port: int) -> None:
    status, body = ask(port, "POST", CHAT, {**HELLO, "standin": {"status": 503}})
    error = json.loads(body)["error"]
    assert (status, list(error)) == (503, ["message", "type", "param", "code"])
    assert ask(port, "POST", CHAT, {**HELLO, "model": "other"})[0] == 404
    assert ask(port, "POST", CHAT, b"{")[0] == 400
    assert ask(port, "POST", CHAT, {**HELLO, "standin": {"dye_after": 1}})[0] == 400


@pytest.mark.parametrize(
    ("scenario", "phase"),
    [
        ({"delay_first": 30}, "before the first token"),
        ({"rate": 50}, "streaming"),
        ({"stall_after": 3}, "streaming"),
        ({"rate": 1, "unstreamed": True}, "unstreamed"),
    ],
)
def test_a_client_that_disconnects_is_counted(
    port: int, scenario: dict[str, Any], phase: str
) -> None:
    streamed = not scenario.pop("unstreamed", False)
    before = stats(port)
    body = json.dumps({**HELLO, "stream": streamed, "standin": scenario}).encode()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(
            b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body))
        )
        client.sendall(body)
        wait_until(lambda: stats(port)["active"] == before["active"] + 1)
        time.sleep(0.1)
    wait_until(lambda: stats(port)["active"] == before["active"])
    after = stats(port)
    assert after["aborted"] == before["aborted"] + 1
    assert after["last_abort"]["phase"] == phase
