"""SGLang: capabilities, and a raw completion that is cut.

The exchange is written according to the source of 0.5.23. No SGLang has run here.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from adjourn.policies.text.dialect import builtin_dialects
from adjourn.server.api.chat import CHAT_PATH as CHAT
from adjourn.server.api.completions import COMPLETIONS_PATH as COMPLETIONS
from adjourn.server.app import create_app
from adjourn.server.config import Settings
from adjourn.server.engines.capabilities import Capabilities, detect_capabilities
from adjourn.server.engines.detect import detect_adapter
from adjourn.server.upstream.client import EngineClient
from tests.server.engines.scripted_engine import VERSIONS, Respond, ScriptedTransport

THINK, END = 1, 2
WORDS = {"<think>": THINK, "</think>": END, "\n": 3, "\n\n": 4, "Hi": 5}
LONGEST_FIRST = sorted(WORDS, key=len, reverse=True)
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def tokenize(text: str) -> list[int]:
    ids = []
    while text:
        word = next((word for word in LONGEST_FIRST if text.startswith(word)), text[0])
        ids.append(WORDS[word] if word in WORDS else 100 + ord(word))
        text = text[len(word) :]
    return ids


class SGLang:
    """Streams of raw completions contain token ids. Chats that request them are refused, unless
    ``chat_has_ids``."""

    def __init__(self, *, chat_has_ids: bool = False) -> None:
        self.chat_has_ids = chat_has_ids

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "qwen3", "max_model_len": 4096}]}
        if path == "/server_info":
            return VERSIONS[path]
        if path == "/tokenize":
            return {"tokens": tokenize(body["prompt"]), "count": 1}
        if path == CHAT:
            return self.chat(body)
        return self.complete(body) if path == COMPLETIONS else 404

    def chat(self, body: dict[str, Any]) -> Any:
        if not body.get("stream"):
            message = {"role": "assistant", "content": "2", "reasoning_content": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE}
        if body.get("return_token_ids") and not self.chat_has_ids:
            return 400
        prompt = body.get("input_ids", [7, THINK])
        text = {"content": "2"} if END in prompt else {"reasoning_content": "a"}
        deltas = [({"role": "assistant", "content": ""}, None), (text, [50])]
        chunks = [
            {"id": "c", "choices": [{"index": 0, "delta": delta, "token_ids": ids}]}
            for delta, ids in deltas
        ]
        chunks[0]["prompt_token_ids"] = prompt
        if body.get("logprobs"):
            top = [{"token": "a", "logprob": -0.1}]
            logprobs = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]}
            chunks[1]["choices"][0]["logprobs"] = logprobs  # type: ignore[index]
        return chunks

    def complete(self, body: dict[str, Any]) -> Any:
        prompt = body["prompt"] if isinstance(body["prompt"], list) else tokenize(body["prompt"])
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


def detect(respond: Respond) -> tuple[ScriptedTransport, Capabilities]:
    transport = ScriptedTransport(respond)

    async def run() -> Capabilities:
        adapter, version = await detect_adapter(EngineClient(Settings(), transport), "auto", [])
        return await detect_capabilities(adapter, version, builtin_dialects(), None)

    return transport, asyncio.run(run())


def test_raw_completions_can_be_cut_and_chats_cannot() -> None:
    """The missing capabilities name the reason."""
    _, report = detect(SGLang())
    assert report.engine_version == "sglang 0.5.23"
    assert set(report.missing) == {"token ids", "log-probabilities of chosen tokens"}
    assert (report.can_cut(CHAT), report.can_cut(COMPLETIONS)) == (False, True)
    assert report.can_probe
    assert report.can_return_logprobs


def test_chats_with_token_ids_can_be_cut_too() -> None:
    """They continue from ``input_ids``."""
    transport, report = detect(SGLang(chat_has_ids=True))
    assert set(report.missing) == {"log-probabilities of chosen tokens"}
    assert report.can_cut(CHAT)
    resumed = [body for path, body in transport.requests if path == CHAT and "input_ids" in body]
    assert resumed[0]["input_ids"] == [7, THINK, THINK, 3, END, 4]
    assert "kv_transfer_params" not in resumed[0]


def test_a_raw_completion_is_cut() -> None:
    """The answer continues from the ids of prompt, kept trace and closing sequence. The client gets
    one text. The chat is passed through."""
    transport = ScriptedTransport(SGLang())

    async def run() -> tuple[httpx.Response, httpx.Response]:
        app = create_app(Settings(policy="budget(max=5,grace=0)", hold_out=0), transport)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
        async with app.router.lifespan_context(app), client:
            for _ in range(200):
                if (await client.get("/ready")).status_code == 200:
                    break
                await asyncio.sleep(0.01)
            body = {"model": "qwen3", "prompt": "Hi<think>\n", "max_tokens": 40}
            chat = {"model": "qwen3", "messages": [{"role": "user", "content": "Hi"}]}
            return await client.post(COMPLETIONS, json=body), await client.post(CHAT, json=chat)

    completion, chat = asyncio.run(run())
    assert completion.json()["adjourn"]["stopped"]
    assert completion.json()["choices"][0]["text"] == " on" * 5 + "\n</think>\n\n two."
    resumed = [body["prompt"] for path, body in transport.requests if path == COMPLETIONS][-1]
    assert resumed == [5, THINK, 3, *[60] * 5, 3, END, 4]
    assert chat.headers["x-adjourn-passed-through"] == "engine-cannot-resume"
    assert chat.json()["choices"][0]["message"]["content"] == "2"
