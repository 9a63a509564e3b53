"""Whatever goes wrong at the engine or in a policy, the client is told the truth."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from benchmarks.services import ROOT, free_port, start_gateway, start_process
from tests.gateway_client import CHAT, body, chat, events, metric_value, raw_stream, stream

CUE = {"tokens": 60, "cues": [20], "trial_logprob": -0.001}


@pytest.mark.parametrize("after", [0, 1, 30])
def test_an_engine_that_dies_in_mid_stream(adjourn: str, after: int) -> None:
    """An error event, no finish, no [DONE], and a broken connection: no SDK takes it for whole."""
    asked = body(stream=True, standin={"tokens": 60, "die_after": after})
    received: list[bytes] = []

    def read() -> None:
        with httpx.stream("POST", adjourn + CHAT, json=asked) as reply:
            received.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    told = events(b"".join(received))
    assert told[-1]["error"]["type"] == "upstream_error"
    assert "[DONE]" not in told
    assert all(c.get("choices", [{}])[0].get("finish_reason") is None for c in told)


def test_the_official_client_sees_the_death(adjourn: str) -> None:
    """openai-python raises."""
    client = openai.OpenAI(base_url=f"{adjourn}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError):
        list(
            client.chat.completions.create(
                model="standin",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                extra_body={"standin": {"tokens": 60, "die_after": 9}},
            )
        )


def test_an_engine_that_dies_under_an_unstreamed_reply(adjourn: str) -> None:
    """502 and when to come again; half an answer is none."""
    reply = chat(adjourn, standin={"tokens": 60, "die_after": 9})
    assert reply.status_code == 502
    assert reply.headers["retry-after"]
    assert reply.json()["error"]["type"] == "upstream_error"


def test_an_error_event_of_the_engine(adjourn: str, standin: str) -> None:
    """It comes through as it was sent."""
    fields = {"standin": {"tokens": 60, "error_event_after": 5}}
    assert events(raw_stream(standin, **fields))[-2:] == events(raw_stream(adjourn, **fields))[-2:]


def test_a_stream_without_done_gets_one(adjourn: str) -> None:
    """A finished response is ended as the API promises."""
    assert stream(adjourn, standin={"tokens": 5, "no_done": True})[-1] == "[DONE]"


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("streamed", [False, True])
def test_errors_of_the_engine_come_back_unmodified(
    adjourn: str, standin: str, status: int, streamed: bool
) -> None:
    """Status, body and Retry-After are the engine's own."""
    fields = {"stream": streamed, "standin": {"status": status, "retry_after": 7}}
    direct, ours = chat(standin, **fields), chat(adjourn, **fields)
    assert (direct.status_code, direct.content) == (ours.status_code, ours.content)
    assert direct.headers.get("retry-after") == ours.headers.get("retry-after")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"probe_status": 500}, "probe-bad-reply"),
        ({"probe_delay": 1.0}, "probe-timeout"),
        ({"ignore_prompt_ids": True}, "ids-not-honoured"),
    ],
)
def test_policy_trouble_never_breaks_a_stream(
    impatient: str, standin: str, fault: dict[str, object], reason: str
) -> None:
    """The whole response comes, and a counter moves."""
    before = metric_value(impatient, "adjourn_fail_open_total", reason=reason)
    scenario = {**CUE, "tokens": 300, **fault} if "probe_delay" in fault else {**CUE, **fault}
    told = stream(impatient, standin=scenario)
    direct = stream(standin, standin=scenario)
    assert _text(direct) == _text(told)
    assert told[-1] == "[DONE]"
    assert before + 1 == metric_value(impatient, "adjourn_fail_open_total", reason=reason)


def _text(chunks: list) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join(d.get("reasoning", "") + d.get("content", "") for d in deltas)


@pytest.fixture(scope="module")
def impatient(standin: str) -> Iterator[str]:
    """A gateway whose probes may take a twentieth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADJOURN_PROBE_TIMEOUT", "0.05")
        with start_gateway(standin, free_port(), "--hold-out", "0") as url:
            yield url


@pytest.mark.parametrize("state", ["before the first token", "in mid-stream", "unstreamed"])
@pytest.mark.parametrize(
    ("path", "policy"), [(CHAT, "deer"), (CHAT, "off"), ("/v1/messages", "deer")]
)
def test_a_client_that_leaves_ends_the_work(
    adjourn: str, standin: str, state: str, path: str, policy: str
) -> None:
    """The engine's work ends within a second, in all three states, judged or not."""
    scenario = {"tokens": 4000, "rate": 50}
    if state == "before the first token":
        scenario["delay_first"] = 30
    before = httpx.get(f"{standin}/standin/stats").json()
    address = urlsplit(adjourn)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    asked = body(stream=state != "unstreamed", standin=scenario, max_tokens=4000)
    connection.request(
        "POST",
        path,
        json.dumps(asked),
        {"content-type": "application/json", "x-adjourn-policy": policy},
    )
    _until(lambda: httpx.get(f"{standin}/standin/stats").json()["active"] > before["active"])
    if state == "in mid-stream":
        connection.getresponse().read(50)
    assert connection.sock is not None or state == "in mid-stream"
    connection.close()
    _until(
        lambda: httpx.get(f"{standin}/standin/stats").json()["aborted"] > before["aborted"],
        within=1.0,
    )
    _until(lambda: metric_value(adjourn, "adjourn_requests_in_flight") == 0)


def _until(condition: Callable[[], bool], within: float = 5.0) -> None:
    limit = time.monotonic() + within
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)


def test_an_engine_that_is_down() -> None:
    """502 and when to come again; alive but not ready."""
    port = free_port()
    command = [
        str(ROOT / ".venv/bin/adjourn"), "serve", "--upstream", f"http://127.0.0.1:{free_port()}",
        "--port", str(port),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with start_process(command, f"{url}/health", timeout=20):
        for streamed in (False, True):
            reply = chat(url, stream=streamed)
            assert reply.status_code == 502
            assert reply.headers["retry-after"]
            assert reply.json()["error"]["code"] == "upstream_unavailable"
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/v1/models").status_code == 502
        assert metric_value(url, "adjourn_engine_up") == 0


def test_an_engine_that_answers_nonsense() -> None:
    """A port where something else listens: requests are refused with an error, not a traceback."""
    listener = socket.create_server(("127.0.0.1", 0))

    def babble() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.recv(65536)
                peer.sendall(b"220 welcome to something else\r\n")

    threading.Thread(target=babble, daemon=True).start()
    port = free_port()
    command = [
        str(ROOT / ".venv/bin/adjourn"), "serve", "--upstream",
        f"http://127.0.0.1:{listener.getsockname()[1]}", "--port", str(port),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with start_process(command, f"{url}/health", timeout=20):
        assert chat(url).status_code == 502
    listener.close()
