"""Engines of other kinds: recognised, examined, judged as far as they can be.

SGLang's side of the exchange is written after its 0.5.23; no SGLang has run here. llama.cpp's is
tried on the real one in tests/engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from adjourn.policies.events import Probe
from adjourn.policies.text.dialect import builtin_dialects
from adjourn.server.api.chat import CHAT_PATH as CHAT
from adjourn.server.api.completions import COMPLETIONS_PATH as COMPLETIONS
from adjourn.server.api.endpoint import PolicyExtras
from adjourn.server.api.request import parse_chat
from adjourn.server.app import create_app
from adjourn.server.config import Settings
from adjourn.server.engines.adapter import Adapter, ProbeResponse
from adjourn.server.engines.capabilities import Capabilities, detect_capabilities
from adjourn.server.engines.detect import ADAPTERS, detect_adapter
from adjourn.server.engines.llamacpp import LlamaCpp, LlamaCppChatEndpoint
from adjourn.server.upstream.client import BadReply, EngineClient

Answer = Callable[[str, dict[str, Any]], Any]
THINK, END = 1, 2
WORDS = {"<think>": THINK, "</think>": END, "\n": 3, "\n\n": 4, "Hi": 5}
_LONGEST = sorted(WORDS, key=len, reverse=True)


def tokens(text: str) -> list[int]:
    ids = []
    while text:
        word = next((word for word in _LONGEST if text.startswith(word)), text[0])
        ids.append(WORDS[word] if word in WORDS else 100 + ord(word))
        text = text[len(word) :]
    return ids


class Reads(httpx.AsyncByteStream):
    """One event a read, with a breath between."""

    def __init__(self, chunks: list[dict[str, Any]]) -> None:
        self._events = [b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in (*self._events, b"data: [DONE]\n\n"):
            await asyncio.sleep(0.001)
            yield event


class Wire(httpx.AsyncBaseTransport):
    """``answer`` gets a path and a body, and says a document, a list of chunks, or a status."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        body = json.loads(content) if content else {}
        self.asked.append((request.url.path, body))
        reply = self.answer(request.url.path, body)
        if isinstance(reply, int):
            return httpx.Response(reply, stream=httpx.ByteStream(b"{}"))
        if isinstance(reply, list):
            return httpx.Response(200, stream=Reads(reply))
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(reply).encode()))


# -- recognition -------------------------------------------------------------------------------

SAID = {
    "/version": {"version": "0.32.0"},
    "/server_info": {"version": "0.5.23", "model_path": "m"},
    "/get_server_info": {"version": "0.4.0"},
    "/props": {"build_info": "b10434-7e4c0a9", "total_slots": 4},
}


def told(paths: tuple[str, ...], name: str = "auto") -> tuple[str, str]:
    wire = Wire(lambda path, _: SAID[path] if path in paths else 404)
    adapter, version = asyncio.run(detect_adapter(EngineClient(Settings(), wire), name, []))
    return adapter.name, version


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("/version",), ("vllm", "0.32.0")),
        (("/server_info", "/get_server_info"), ("sglang", "0.5.23")),
        (("/get_server_info",), ("sglang", "0.4.0")),
        (("/props",), ("llamacpp", "b10434-7e4c0a9")),
        ((), ("vllm", "unknown")),
    ],
)
def test_an_engine_says_what_it_is(paths: tuple[str, ...], expected: tuple[str, str]) -> None:
    """Each at a place of its own; one that says nothing is tried as vLLM."""
    assert told(paths) == expected


def test_a_kind_that_is_set_is_not_asked_about() -> None:
    """Whatever else the engine may look like; its version may be unknown."""
    assert told(("/version",), "sglang") == ("sglang", "unknown")
    assert told(("/version", "/props"), "llamacpp") == ("llamacpp", "b10434-7e4c0a9")


def test_each_kind_can_be_set() -> None:
    """By the setting `engine`."""
    assert [Settings(engine=name).engine for name in ADAPTERS] == list(ADAPTERS)  # type: ignore[arg-type]


# -- SGLang ------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


class SGLang:
    """Raw completions tell ids; chat streams that are to do so are refused, unless ``told``."""

    def __init__(self, *, told: bool = False) -> None:
        self.told = told

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "qwen3", "max_model_len": 4096}]}
        if path in ("/server_info", "/tokenize"):
            return SAID[path] if path in SAID else {"tokens": tokens(body["prompt"]), "count": 1}
        if path == CHAT:
            return self.chat(body)
        return self.complete(body) if path == COMPLETIONS else 404

    def chat(self, body: dict[str, Any]) -> Any:
        if not body.get("stream"):
            message = {"role": "assistant", "content": "2", "reasoning_content": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE}
        if body.get("return_token_ids") and not self.told:
            return 400
        prompt = body.get("input_ids", [7, THINK])
        thought = {"content": "2"} if END in prompt else {"reasoning_content": "a"}
        deltas = [({"role": "assistant", "content": ""}, None), (thought, [50])]
        chunks = [
            {"id": "c", "choices": [{"index": 0, "delta": delta, "token_ids": ids}]}
            for delta, ids in deltas
        ]
        chunks[0]["prompt_token_ids"] = prompt
        if body.get("logprobs"):
            top = [{"token": "a", "logprob": -0.1}]
            told = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]}
            chunks[1]["choices"][0]["logprobs"] = told  # type: ignore[index]
        return chunks

    def complete(self, body: dict[str, Any]) -> Any:
        prompt = body["prompt"] if isinstance(body["prompt"], list) else tokens(body["prompt"])
        if isinstance(prompt[0], list):
            prompt = prompt[0]
        if not body.get("stream"):
            logprobs = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1}]}
            choice = {"index": 0, "text": "a", "logprobs": logprobs, "finish_reason": "length"}
            return {"id": "p", "object": "text_completion", "choices": [choice], "usage": USAGE}
        texts = [" two", "."] if END in prompt else [" on"] * 30
        chunks = []
        for text in texts:
            choice = {"index": 0, "text": text, "finish_reason": None, "token_ids": [60]}
            if body.get("logprobs"):
                choice["logprobs"] = {"tokens": [text], "top_logprobs": [{text: -0.1}]}
            chunks.append({"id": "p", "object": "text_completion", "created": 1, "model": "qwen3"})
            chunks[-1]["choices"] = [choice]
        chunks[0]["choices"][0]["prompt_token_ids"] = prompt  # type: ignore[index]
        chunks[-1]["choices"][0]["finish_reason"] = "stop"  # type: ignore[index]
        return chunks


def examined(answer: Answer) -> tuple[Adapter, Capabilities]:
    async def ask() -> tuple[Adapter, Capabilities]:
        adapter, version = await detect_adapter(EngineClient(Settings(), Wire(answer)), "auto", [])
        return adapter, await detect_capabilities(adapter, version, builtin_dialects(), None)

    return asyncio.run(ask())


def test_what_sglang_can_do() -> None:
    """Raw completions are judged; of chats it is said why they are not."""
    _, report = examined(SGLang())
    assert report.engine_version == "sglang 0.5.23"
    assert set(report.missing) == {"token ids", "log-probabilities of chosen tokens"}
    assert (report.can_cut(CHAT), report.can_cut(COMPLETIONS)) == (False, True)
    assert report.can_probe
    assert report.can_return_logprobs


def test_an_sglang_whose_chats_tell_ids() -> None:
    """Then they are judged too, and go on from ``input_ids``."""
    adapter, report = examined(SGLang(told=True))
    assert set(report.missing) == {"log-probabilities of chosen tokens"}
    assert report.can_cut(CHAT)
    asked = adapter.engine._transport.asked  # type: ignore[attr-defined]
    resumed = [body for path, body in asked if path == CHAT and "input_ids" in body]
    assert resumed[0]["input_ids"] == [7, THINK, THINK, 3, END, 4]
    assert "kv_transfer_params" not in resumed[0]


def test_a_raw_completion_of_sglang_is_cut() -> None:
    """From the ids of prompt, kept trace and closing; what the client gets is one text."""
    wire = Wire(SGLang())

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        app = create_app(Settings(policy="budget(max=5,grace=0)", hold_out=0), wire)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
        async with app.router.lifespan_context(app), client:
            for _ in range(200):
                if (await client.get("/ready")).status_code == 200:
                    break
                await asyncio.sleep(0.01)
            body = {"model": "qwen3", "prompt": "Hi<think>\n", "max_tokens": 40}
            chat = {"model": "qwen3", "messages": [{"role": "user", "content": "Hi"}]}
            return await client.post(COMPLETIONS, json=body), await client.post(CHAT, json=chat)

    cut, chat = asyncio.run(ask())
    assert cut.json()["adjourn"]["stopped"]
    assert cut.json()["choices"][0]["text"] == " on" * 5 + "\n</think>\n\n two."
    resumed = [body["prompt"] for path, body in wire.asked if path == COMPLETIONS][-1]
    assert resumed == [5, THINK, 3, *[60] * 5, 3, END, 4]
    assert chat.headers["x-adjourn-passed-through"] == "engine-cannot-resume"
    assert chat.json()["choices"][0]["message"]["content"] == "2"


# -- llama.cpp ---------------------------------------------------------------------------------


def llama(reply: Any) -> tuple[LlamaCpp, Wire]:
    wire = Wire(lambda path, body: reply)
    return LlamaCpp(EngineClient(Settings(), wire)), wire


def chat(wanted: int = 0, **fields: Any) -> LlamaCppChatEndpoint:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    asked = parse_chat(json.dumps(body).encode(), {}, Settings(), None, {"m": None})
    return LlamaCppChatEndpoint(asked, 0, PolicyExtras(logprobs=wanted))


@pytest.mark.parametrize(
    ("surface", "expected"),
    [
        (chat(), {"top_logprobs": 1, "post_sampling_probs": True}),
        (chat(5), {"top_logprobs": 5}),
        (chat(5, logprobs=True, top_logprobs=9), {"top_logprobs": 9}),
        (chat(logprobs=True, top_logprobs=0), {"top_logprobs": 1}),
    ],
)
def test_ids_are_asked_for_as_cheaply_as_can_be(
    surface: LlamaCppChatEndpoint, expected: dict[str, Any]
) -> None:
    """Only where somebody reads log-probabilities are they those of the whole vocabulary."""
    asked = {key: json.loads(bytes(value)) for key, value in surface.main_fields.items()}
    assert asked["logprobs"] is asked["reasoning_control"] is asked["stream"] is True
    names = ("top_logprobs", "post_sampling_probs")
    assert {name: asked[name] for name in names if name in asked} == expected


TOKEN = {"id": 40, "token": "I", "bytes": [73], "prob": 1.0, "top_probs": []}
CHUNK = {
    "choices": [
        {
            "finish_reason": None,
            "index": 0,
            "delta": {"reasoning_content": "I"},
            "logprobs": {"content": [TOKEN]},
        }
    ],
    "created": 1,
    "id": "chatcmpl-1",
}


def test_a_chunk_tells_its_ids_and_shows_none_of_it() -> None:
    """What was asked for here alone is taken out, key and all."""
    surface = chat()
    data = json.dumps(CHUNK, separators=(",", ":")).encode()
    chunk = surface.decode(data)
    assert chunk.choices[0].token_ids == [40]
    shown = surface.render_event(b"data: " + data + b"\n\n", chunk)
    assert shown is not None
    choice = json.loads(shown.removeprefix(b"data: "))["choices"][0]
    assert choice == {"finish_reason": None, "index": 0, "delta": {"reasoning_content": "I"}}


def test_a_probe_of_llama() -> None:
    """By ids at its own endpoint, greedily; its word for log-probabilities is read."""
    one = {"id": 4, "token": "4", "logprob": -0.1}
    other = {"id": 5, "token": "5", "logprob": -3.0}
    reply = {
        "content": "4}",
        "stop_type": "eos",
        "tokens_predicted": 3,
        "timings": {"prompt_n": 7},
        "completion_probabilities": [{**one, "top_logprobs": [other, one]}],
    }
    adapter, wire = llama(reply)
    drawn = asyncio.run(
        adapter.probe("m", [1, 2], Probe(max_tokens=8, top_logprobs=2), [], {"a": 1})
    )
    assert drawn == ProbeResponse("4}", ("4",), (-0.1,), True, 7, 3, ((-0.1, -3.0),))
    path, body = wire.asked[0]
    assert path == "/completion"
    assert (body["prompt"], body["n_predict"], body["n_probs"]) == ([1, 2], 8, 2)
    assert body["temperature"] == 0


@pytest.mark.parametrize("reply", [{}, [], {"content": "4"}, 404])
def test_a_probe_without_probabilities_is_a_bad_reply(reply: Any) -> None:
    """As with any engine."""
    adapter, _ = llama(reply if reply != [] else {"content": 1})
    with pytest.raises(BadReply):
        asyncio.run(adapter.probe("m", [1], Probe(), [], {}))


def test_chosen_tokens_are_not_scored() -> None:
    """It is said, not guessed."""
    adapter, wire = llama({})
    with pytest.raises(BadReply):
        asyncio.run(adapter.probe("m", [1], Probe(), [], {}, ending_ids=(2,)))
    assert wire.asked == []


@pytest.mark.parametrize("reply", [{"success": False, "message": "no"}, {}, 404])
def test_a_trace_that_is_not_ended(reply: Any) -> None:
    """A stream that is over, or an engine that knows no such thing."""
    adapter, wire = llama(reply)
    with pytest.raises(BadReply):
        asyncio.run(adapter.end_trace("chatcmpl-1", "m", []))
    expected = {"id": "chatcmpl-1", "model": "m", "action": "reasoning_end"}
    assert wire.asked == [("/v1/chat/completions/control", expected)]
