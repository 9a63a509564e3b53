"""Faults of the engine or of a policy: the client gets a correct error or a complete response."""

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
def test_an_engine_that_dies_mid_stream(adjourn: str, after: int) -> None:
    """An error event, no finish reason, no [DONE] and a closed connection, so that no SDK takes the
    response for complete."""
    request = body(stream=True, standin={"tokens": 60, "die_after": after})
    received: list[bytes] = []

    def read() -> None:
        with httpx.stream("POST", adjourn + CHAT, json=request) as reply:
            received.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    chunks = events(b"".join(received))
    assert chunks[-1]["error"]["type"] == "upstream_error"
    assert "[DONE]" not in chunks
    assert all(c.get("choices", [{}])[0].get("finish_reason") is None for c in chunks)


def test_the_official_client_raises_when_the_engine_dies(adjourn: str) -> None:
    """openai-python raises ``APIError``."""
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


def test_an_engine_that_dies_during_an_unstreamed_response(adjourn: str) -> None:
    """502 with Retry-After; half an answer is not returned."""
    reply = chat(adjourn, standin={"tokens": 60, "die_after": 9})
    assert reply.status_code == 502
    assert reply.headers["retry-after"]
    assert reply.json()["error"]["type"] == "upstream_error"


def test_an_error_event_of_the_engine_is_forwarded(adjourn: str, standin: str) -> None:
    """The client gets it exactly as the engine sent it."""
    fields = {"standin": {"tokens": 60, "error_event_after": 5}}
    assert events(raw_stream(standin, **fields))[-2:] == events(raw_stream(adjourn, **fields))[-2:]


def test_a_stream_without_done_gets_one(adjourn: str) -> None:
    """The API promises [DONE] after a finished response."""
    assert stream(adjourn, standin={"tokens": 5, "no_done": True})[-1] == "[DONE]"


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("streamed", [False, True])
def test_engine_errors_are_returned_unmodified(
    adjourn: str, standin: str, status: int, streamed: bool
) -> None:
    """Status, body and Retry-After."""
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
def test_a_policy_error_never_breaks_a_stream(
    impatient: str, standin: str, fault: dict[str, object], reason: str
) -> None:
    """The client gets the complete response, and the fail-open counter increases."""
    before = metric_value(impatient, "adjourn_fail_open_total", reason=reason)
    scenario = {**CUE, "tokens": 300, **fault} if "probe_delay" in fault else {**CUE, **fault}
    ours = stream(impatient, standin=scenario)
    direct = stream(standin, standin=scenario)
    assert _text(direct) == _text(ours)
    assert ours[-1] == "[DONE]"
    assert before + 1 == metric_value(impatient, "adjourn_fail_open_total", reason=reason)


def _text(chunks: list) -> str:
    deltas = [c["choices"][0]["delta"] for c in chunks if c != "[DONE]" and c["choices"]]
    return "".join(d.get("reasoning", "") + d.get("content", "") for d in deltas)


@pytest.fixture(scope="module")
def impatient(standin: str) -> Iterator[str]:
    """A gateway whose probes time out after 50 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADJOURN_PROBE_TIMEOUT", "0.05")
        with start_gateway(standin, free_port(), "--hold-out", "0") as url:
            yield url


@pytest.mark.parametrize("state", ["before the first token", "mid-stream", "unstreamed"])
@pytest.mark.parametrize(
    ("path", "policy"), [(CHAT, "deer"), (CHAT, "off"), ("/v1/messages", "deer")]
)
def test_a_client_disconnect_ends_the_engine_request(
    adjourn: str, standin: str, state: str, path: str, policy: str
) -> None:
    """Within one second, in all three states, with a policy and without."""
    scenario = {"tokens": 4000, "rate": 50}
    if state == "before the first token":
        scenario["delay_first"] = 30
    before = httpx.get(f"{standin}/standin/stats").json()
    address = urlsplit(adjourn)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    request = body(stream=state != "unstreamed", standin=scenario, max_tokens=4000)
    connection.request(
        "POST",
        path,
        json.dumps(request),
        {"content-type": "application/json", "x-adjourn-policy": policy},
    )
    wait_until(lambda: httpx.get(f"{standin}/standin/stats").json()["active"] > before["active"])
    if state == "mid-stream":
        connection.getresponse().read(50)
    assert connection.sock is not None or state == "mid-stream"
    connection.close()
    wait_until(
        lambda: httpx.get(f"{standin}/standin/stats").json()["aborted"] > before["aborted"],
        timeout=1.0,
    )
    wait_until(lambda: metric_value(adjourn, "adjourn_requests_in_flight") == 0)


def wait_until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)


def test_an_engine_that_is_down() -> None:
    """502 with Retry-After; the gateway is alive (/health) but not ready (/ready)."""
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


def test_an_upstream_that_does_not_speak_http() -> None:
    """The gateway answers 502, without an unhandled exception."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.recv(65536)
                peer.sendall(b"220 welcome to something else\r\n")

    threading.Thread(target=serve, daemon=True).start()
    port = free_port()
    command = [
        str(ROOT / ".venv/bin/adjourn"), "serve", "--upstream",
        f"http://127.0.0.1:{listener.getsockname()[1]}", "--port", str(port),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with start_process(command, f"{url}/health", timeout=20):
        assert chat(url).status_code == 502
    listener.close()
