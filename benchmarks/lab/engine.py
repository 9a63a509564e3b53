"""The engine as the recorder speaks to it: stock vLLM, the same three calls as the gateway's."""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from policies.dialect import Dialect, Marks
from policies.events import Probe

__all__ = ["TROUBLE", "BadEngine", "Chunk", "Drawing", "Engine"]

# vLLM's server closes an idle connection after five seconds; we must be first.
_KEEPALIVE = 3.0
_LINE = 2**24
"""Bytes of one event: the first one carries the prompt's ids."""
_SILENCE = 600.0


class BadEngine(Exception):
    """The engine is not there, refused, or cannot do what recording needs."""


TROUBLE = (BadEngine, aiohttp.ClientError, TimeoutError, msgspec.MsgspecError)
"""What a call may raise."""


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None

    @property
    def thought(self) -> str:
        return self.reasoning or self.reasoning_content or ""


class Choice(msgspec.Struct):
    delta: Delta
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct):
    """A chunk of a chat stream, as far as it is recorded."""

    choices: list[Choice] = []
    prompt_token_ids: list[int] | None = None
    error: Any = None


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a probe brought. ``prefilled``: prompt tokens that the cache did not hold."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    finished: bool
    prefilled: int


_decode_chunk = msgspec.json.Decoder(Chunk).decode


class Engine:
    """One model of one engine. Raises what TROUBLE names."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session = session
        self._url = url
        self.model = model

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, url: str, model: str | None, key: str | None) -> AsyncIterator[Engine]:
        """The engine at ``url``; ``model`` may be left out where it serves only one."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(total=None, sock_read=_SILENCE),
            read_bufsize=_LINE,
        )
        async with session:
            engine = cls(session, url.rstrip("/"), model or "")
            served = [card["id"] for card in (await engine._get("/v1/models"))["data"]]
            if model is None and len(served) == 1:
                engine.model = served[0]
            if engine.model not in served:
                raise BadEngine(f"choose a model that is served: {', '.join(served)}")
            yield engine

    async def version(self) -> str:
        with contextlib.suppress(*TROUBLE):
            return str((await self._get("/version")).get("version", ""))
        return ""

    async def marks(self, dialects: Mapping[str, Dialect], forced: str | None) -> Marks:
        """The dialect whose markers are single tokens of this model, in the model's ids."""
        candidates = [dialects[forced]] if forced else list(dialects.values())
        name = self.model.lower()
        candidates.sort(key=lambda d: not any(fnmatch.fnmatch(name, p) for p in d.models))
        for dialect in candidates:
            start, end = await self._ids(dialect.start), await self._ids(dialect.end)
            if len(start) == len(end) == 1:
                return Marks(
                    dialect=dialect,
                    start=start[0],
                    end=end[0],
                    closing=await self._ids(dialect.closing),
                    closing_on_newline=await self._ids(dialect.closing.removeprefix("\n")),
                    inducers={n: await self._ids(t) for n, t in dialect.inducers.items()},
                )
        raise BadEngine(f"{self.model} has the markers of no known dialect")

    async def _ids(self, text: str) -> tuple[int, ...]:
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return tuple((await self._post("/tokenize", body))["tokens"])

    async def chat(self, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """The stream's chunks, as they come; closing the iterator ends the work at the engine."""
        asked = {"model": self.model, **body, "stream": True, "return_token_ids": True}
        asked["include_reasoning"] = True
        async with self._session.post(f"{self._url}/v1/chat/completions", json=asked) as reply:
            await _refusal(reply)
            async for line in reply.content:
                if line.startswith(b"data: {"):
                    chunk = _decode_chunk(line[6:])
                    if chunk.error is not None:
                        raise BadEngine(f"the engine broke off: {chunk.error}")
                    yield chunk

    async def draw(self, prompt: Sequence[int], probe: Probe) -> Drawing:
        """Draw greedily from these ids. BadEngine where log-probabilities are missing."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": probe.max_tokens,
            "temperature": 0,
            "logprobs": 1,
        }
        reply = await self._post("/v1/completions", body)
        choice, usage = reply["choices"][0], reply["usage"]
        drawn = choice["logprobs"] or {"tokens": (), "token_logprobs": (None,)}
        logprobs = tuple(drawn["token_logprobs"])
        if not all(p is not None and math.isfinite(p) for p in logprobs):
            raise BadEngine("a probe's reply has no log-probabilities")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Drawing(
            text=choice["text"],
            tokens=tuple(drawn["tokens"]),
            logprobs=logprobs,
            finished=choice["finish_reason"] == "stop",
            prefilled=usage["prompt_tokens"] - cached,
        )

    async def _get(self, path: str) -> Any:
        async with self._session.get(self._url + path) as reply:
            await _refusal(reply)
            return msgspec.json.decode(await reply.read())

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self._session.post(self._url + path, json=body) as reply:
            await _refusal(reply)
            return msgspec.json.decode(await reply.read())


async def _refusal(reply: aiohttp.ClientResponse) -> None:
    if reply.status != 200:
        said = (await reply.text())[:300]
        raise BadEngine(f"{reply.url.path} answered {reply.status}: {said}")
