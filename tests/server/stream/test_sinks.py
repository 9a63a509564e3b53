"""Sinks: the client's stream, and the assembler of one document."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.server.errors import UpstreamDown
from adjourn.server.stream.assembler import Assembler
from adjourn.server.stream.sinks import StreamSink, response_headers
from tests.server.stream.test_chunk import encoded

EXTRA = [(b"x-request-id", b"r1")]
SKELETON = {
    "id": "skeleton",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hi",
                "refusal": None,
                "tool_calls": [],
                "reasoning": None,
            },
            "logprobs": None,
            "finish_reason": "length",
            "token_ids": None,
        }
    ],
    "service_tier": None,
    "usage": {
        "prompt_tokens": 9,
        "total_tokens": 9,
        "completion_tokens": 2,
        "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": None},
    },
    "prompt_logprobs": None,
}


class Sent:
    """An ASGI ``send`` that keeps what it got."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def start(self) -> Any:
        assert self.messages[0]["type"] == "http.response.start"
        return self.messages[0]

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def ended(self) -> bool:
        return not self.messages[-1].get("more_body", False)


def reply(**headers: str) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream", **headers})


def event(**fields: Any) -> bytes:
    """An event with a chunk. ``choice``: the fields of its only choice."""
    choice = fields.pop("choice", None)
    chunk: dict[str, Any] = {"id": "a", "object": "chat.completion.chunk", "created": 5}
    chunk["choices"] = [] if choice is None else [{"index": 0, **choice}]
    return b"data: " + encoded(chunk | fields) + b"\n\n"


def delta(finish: str | None = None, **fields: Any) -> bytes:
    return event(choice={"delta": fields, "logprobs": None, "finish_reason": finish})


def assembled(
    *events: bytes, note: Any = None, skeleton: Any = None, silence: str | None = None
) -> tuple[Sent, Any]:
    """What the assembler sent for these events, and the decoded body."""

    async def assemble() -> Sent:
        sent = Sent()
        sink = Assembler(sent, EXTRA, SKELETON if skeleton is None else skeleton, silence)
        sink.open(reply())
        for each in events:
            await sink.write([each])
        await sink.end(note)
        return sent

    sent = asyncio.run(assemble())
    return sent, json.loads(sent.body)


def test_extra_headers_replace_the_engines() -> None:
    """The engine's other headers stay, except those of its connection."""
    engine = httpx.Response(
        200,
        headers=[
            ("content-type", "text/event-stream"),
            ("X-Request-Id", "theirs"),
            ("content-length", "5"),
            ("connection", "keep-alive"),
            ("date", "today"),
            ("x-vllm", "1"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
        ],
    )
    assert response_headers(engine, EXTRA) == [
        (b"content-type", b"text/event-stream"),
        (b"x-vllm", b"1"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"x-request-id", b"r1"),
    ]


def test_events_are_sent_unchanged() -> None:
    """The head comes with the first events; the body ends properly."""
    sent = Sent()
    sink = StreamSink(sent, EXTRA)
    sink.open(reply())
    assert (sent.messages, sink.has_started) == ([], False)

    async def run() -> None:
        await sink.write([b"data: 1\n\n", b": ping\n\n"])
        await sink.write([b"data: [DONE]\n\n"])
        await sink.end(None)

    asyncio.run(run())
    assert (sent.start["status"], sink.has_started, sent.ended) == (200, True, True)
    assert sent.body == b"data: 1\n\n: ping\n\ndata: [DONE]\n\n"
    headers = dict(sent.start["headers"])
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"x-request-id"] == b"r1"


def test_a_failed_stream_does_not_look_complete() -> None:
    """An error event without an end of the body: SDKs take a clean end for a whole answer."""
    sent = Sent()
    sink = StreamSink(sent, EXTRA)
    sink.open(reply())

    async def run() -> None:
        await sink.write([b"data: 1\n\n"])
        await sink.fail(UpstreamDown("it broke off"))

    asyncio.run(run())
    assert not sent.ended
    assert json.loads(sent.body.split(b"data: ")[-1])["error"]["message"] == "it broke off"


@pytest.mark.parametrize("kind", [StreamSink, Assembler])
def test_a_refusal_is_the_engines_own(kind: Any) -> None:
    """Status, body and headers of an error are forwarded unmodified, streamed or not."""
    sent = Sent()
    sink = kind(sent, EXTRA) if kind is StreamSink else kind(sent, EXTRA, {})
    body = b'{"error":{"message":"too long","code":400}}'
    headers = {"content-type": "application/json", "retry-after": "3"}
    asyncio.run(sink.forward_response(httpx.Response(429, headers=headers, content=body)))
    assert (sent.start["status"], sent.body, sent.ended) == (429, body, True)
    assert (b"retry-after", b"3") in sent.start["headers"]
    assert sink.has_started


def test_a_document_is_assembled() -> None:
    """Texts joined, the last finish reason, the usage, keys in the engine's order."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    sent, document = assembled(
        delta(role="assistant", content=""),
        delta(reasoning="So "),
        delta(reasoning="7."),
        delta(content="It is "),
        delta(content="7."),
        delta("stop"),
        event(usage={**usage, "completion_tokens_details": {"reasoning_tokens": 2}}),
        b"data: [DONE]\n\n",
    )
    assert list(document) == list(SKELETON)
    choice = document["choices"][0]
    assert list(choice) == list(SKELETON["choices"][0])  # type: ignore[index,call-overload]
    assert choice["message"] == {
        "role": "assistant",
        "content": "It is 7.",
        "refusal": None,
        "tool_calls": None,
        "reasoning": "So 7.",
    }
    assert (choice["finish_reason"], document["object"]) == ("stop", "chat.completion")
    assert document["usage"]["completion_tokens_details"] == {
        "reasoning_tokens": 2,
        "audio_tokens": None,
    }
    assert document["id"] == "a"
    headers = dict(sent.start["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"%d" % len(sent.body)


@given(st.lists(st.text(max_size=5), max_size=6), st.lists(st.text(max_size=5), max_size=6))
def test_any_text_is_joined(thoughts: list[str], answers: list[str]) -> None:
    """The texts of the deltas in their order, and null without text."""
    _, document = assembled(
        *(delta(reasoning=text) for text in thoughts), *(delta(content=text) for text in answers)
    )
    message = document["choices"][0]["message"]
    assert (message["reasoning"] or "") == "".join(thoughts)
    assert message["content"] == ("".join(answers) or None)


def test_a_role_in_every_chunk_is_one_role() -> None:
    """Some engines repeat the role in every chunk."""
    _, document = assembled(
        delta(role="assistant", content="4"), delta(role="assistant", content="2")
    )
    message = document["choices"][0]["message"]
    assert (message["role"], message["content"]) == ("assistant", "42")


def test_tool_calls_are_assembled() -> None:
    """Arguments are joined by the index of the call; ids and names come once."""

    def call(index: int, **fields: Any) -> bytes:
        return delta(tool_calls=[{"index": index, **fields}])

    _, document = assembled(
        delta(role="assistant", content=None),
        call(1, id="c1", type="function", function={"name": "g", "arguments": ""}),
        call(0, id="c0", type="function", function={"name": "f", "arguments": '{"a'}),
        call(1, function={"arguments": "{}"}),
        call(0, function={"arguments": '":1}'}),
        delta("tool_calls"),
    )
    message = document["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_empty_content_is_the_engines_value() -> None:
    """Null or an empty string, as in its unstreamed replies."""
    for silence in (None, ""):
        _, document = assembled(delta(role="assistant", content=""), silence=silence)
        assert document["choices"][0]["message"]["content"] == silence


def test_lists_are_concatenated() -> None:
    """Log-probabilities and token ids of all chunks, in order."""
    parts = [
        event(
            choice={
                "delta": {"content": str(n)},
                "logprobs": {"content": [{"token": str(n)}], "refusal": None},
                "token_ids": [n, n],
            },
            prompt_token_ids=[5, 6] if n == 0 else None,
        )
        for n in range(3)
    ]
    _, document = assembled(*parts)
    choice = document["choices"][0]
    assert choice["token_ids"] == [0, 0, 1, 1, 2, 2]
    assert [part["token"] for part in choice["logprobs"]["content"]] == ["0", "1", "2"]
    assert document["prompt_token_ids"] == [5, 6]


def test_unknown_keys_are_kept() -> None:
    """In a chunk, a choice or a delta."""
    _, document = assembled(
        event(
            choice={"delta": {"content": "7", "mood": "calm"}, "stop_reason": 3}, novelty={"a": 1}
        )
    )
    choice = document["choices"][0]
    assert (choice["message"]["mood"], choice["stop_reason"]) == ("calm", 3)
    assert document["novelty"] == {"a": 1}


def test_without_a_skeleton() -> None:
    """Replies are assembled even if the engine could not be examined."""
    _, document = assembled(delta(content="7"), delta("stop"), skeleton={})
    assert document["choices"][0]["message"]["content"] == "7"


def test_the_summary_is_in_body_and_header() -> None:
    """For clients that read either."""
    note = {"stopped": True, "policy": "deer"}
    sent, document = assembled(delta(content="7"), note=note)
    assert document["adjourn"] == note
    assert json.loads(dict(sent.start["headers"])[b"x-adjourn"]) == note


@pytest.mark.parametrize(("code", "status"), [(400, 400), ("bad", 502), (None, 502), (200, 502)])
def test_an_error_in_the_stream_is_the_reply(code: Any, status: int) -> None:
    """An engine that fails after its status 200 gives an error status here."""
    error = {"error": {"message": "it broke", "type": "x", "param": None, "code": code}}
    sent, document = assembled(
        delta(content="7"), b"data: " + encoded(error) + b"\n\n", note={"stopped": False}
    )
    assert (sent.start["status"], document) == (status, error)


@pytest.mark.parametrize("error", ["it broke", ["it broke"], 5])
def test_an_error_of_another_shape(error: Any) -> None:
    """The error may have any shape."""
    sent, document = assembled(b"data: " + encoded({"error": error}) + b"\n\n")
    assert (sent.start["status"], document) == (502, {"error": error})


def test_a_null_error_is_no_error() -> None:
    """A key ``error`` with null."""
    sent, document = assembled(event(choice={"delta": {"content": "7"}}, error=None))
    assert sent.start["status"] == 200
    assert document["choices"][0]["message"]["content"] == "7"


@pytest.mark.parametrize("data", [b"{", b"[]", b"5", b'"x"', b"\xff"])
def test_an_unreadable_chunk_is_skipped(data: bytes) -> None:
    """One bad chunk does not lose the reply."""
    _, document = assembled(delta(content="7"), b"data: " + data + b"\n\n", delta("stop"))
    assert document["choices"][0]["message"]["content"] == "7"


def test_comments_are_skipped() -> None:
    """A keep-alive comment has no data."""
    _, document = assembled(b": ping\n\n", delta(content="7"))
    assert document["choices"][0]["message"]["content"] == "7"


def test_a_document_that_fails_is_an_error() -> None:
    """Nothing was sent yet, so the error is the reply."""
    with pytest.raises(UpstreamDown):
        asyncio.run(Assembler(Sent(), EXTRA, {}).fail(UpstreamDown("x")))
