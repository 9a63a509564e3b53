"""The client that the recorder calls a stock vLLM with: it sends the requests of the gateway."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from adjourn.lab.http_client import ENGINE_ERRORS, EngineError, HttpClient
from adjourn.policies.events import Probe
from adjourn.policies.text.dialect import Dialect, TokenizedDialect, candidate_dialects
from adjourn.policies.text.markers import TokenIds
from adjourn.server.engines.adapter import ProbeResponse
from adjourn.server.engines.completion_probe import COMPLETIONS_PATH, run_probe

__all__ = ["Chunk", "EngineClient"]

_READ_TIMEOUT = 600.0


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None

    @property
    def reasoning_text(self) -> str:
        return self.reasoning or self.reasoning_content or ""


class _TopLogprob(msgspec.Struct):
    logprob: float


class _TokenLogprobs(msgspec.Struct):
    top_logprobs: list[_TopLogprob] = []


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprobs] | None = None


class Choice(msgspec.Struct):
    delta: Delta
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None

    @property
    def sorted_logprobs(self) -> tuple[tuple[float, ...], ...]:
        """For each token the log-probabilities of its most probable candidates, highest first;
        empty unless the chunk has them for every token."""
        content = (self.logprobs.content if self.logprobs else None) or ()
        if len(content) != len(self.token_ids or ()):
            return ()
        candidates = ((top.logprob for top in token.top_logprobs) for token in content)
        return tuple(tuple(sorted(logprobs, reverse=True)) for logprobs in candidates)


class Chunk(msgspec.Struct):
    """The recorded fields of a chunk of a chat stream."""

    choices: list[Choice] = []
    prompt_token_ids: list[int] | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode


class EngineClient:
    """One model of one engine. Calls raise ENGINE_ERRORS."""

    def __init__(self, client: HttpClient, model: str) -> None:
        self._client = client
        self.model = model

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str, model: str | None, key: str | None
    ) -> AsyncIterator[EngineClient]:
        """The engine at the base URL ``url``. ``model`` may be None if it serves only one."""
        async with aclosing(HttpClient(url, key, _READ_TIMEOUT)) as client:
            engine = cls(client, model or "")
            served = [card["id"] for card in (await engine._get("/v1/models"))["data"]]
            if model is None and len(served) == 1:
                engine.model = served[0]
            if engine.model not in served:
                raise EngineError(f"choose a model that is served: {', '.join(served)}")
            yield engine

    async def version(self) -> str:
        """The engine's version; empty if it reports none."""
        with contextlib.suppress(*ENGINE_ERRORS):
            return str((await self._get("/version")).get("version", ""))
        return ""

    async def resolve_dialect(
        self, dialects: Mapping[str, Dialect], forced: str | None
    ) -> TokenizedDialect:
        """The model's dialect as token ids, selected as the gateway selects it. ``forced``: the
        name of a dialect to use. Raises EngineError if none fits."""
        for dialect in candidate_dialects(self.model, dialects, forced):
            if dialect.fits_vocabulary(
                {text: await self._tokenize(text) for text in dialect.identifying_texts}
            ):
                return TokenizedDialect.from_ids(
                    dialect,
                    {text: await self._tokenize(text) for text in dialect.texts_to_tokenize},
                )
        raise EngineError(f"{self.model} has the markers of no known dialect")

    async def _tokenize(self, text: str) -> TokenIds:
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        reply = await self._client.post("/tokenize", msgspec.json.encode(body))
        return tuple(msgspec.json.decode(reply)["tokens"])

    async def chat(self, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """The chunks of a chat stream with token ids. Closing the generator aborts the request at
        the engine."""
        fields = {"model": self.model, **body, "stream": True, "return_token_ids": True}
        fields["include_reasoning"] = True
        events = self._client.stream("/v1/chat/completions", msgspec.json.encode(fields))
        async with aclosing(events):
            async for data in events:
                if data.startswith(b"{"):  # the last event is [DONE]
                    chunk = _decode_chunk(data)
                    if chunk.error is not None:
                        raise EngineError(f"the engine broke off the stream: {chunk.error}")
                    yield chunk

    async def run_probe(
        self, prompt: Sequence[int], probe: Probe, ending_ids: Sequence[int] = ()
    ) -> ProbeResponse:
        """Generate greedily after the ids ``prompt``, or score ``ending_ids`` there. Raises
        BadReply where the reply has no log-probabilities."""
        post = partial(self._client.post, COMPLETIONS_PATH)
        return await run_probe(post, self.model, prompt, probe, {}, ending_ids)

    async def _get(self, path: str) -> Any:
        return msgspec.json.decode(await self._client.get(path))
