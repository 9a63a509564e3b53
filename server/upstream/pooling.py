"""The models beside the engine's: an embedder, and one that rewards partial traces.

Each is served by an engine of its own (vLLM with ``--runner pooling``, or what speaks like it).
Whatever goes wrong there is counted, and told as the reason why nothing came; the stream that asked
goes on.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from adjourn.server.errors import GatewayError
from adjourn.server.metrics import Metrics
from adjourn.server.upstream.client import BadReply, EngineClient

__all__ = ["Embedder", "RewardScorer"]

_PARAGRAPH_BREAK = "\n\n"
_T = TypeVar("_T")


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _EmbeddingItem(msgspec.Struct):
    embedding: list[float]


class _EmbeddingResponse(msgspec.Struct):
    data: list[_EmbeddingItem]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _PoolingItem(msgspec.Struct):
    data: list[Any]


class _PoolingResponse(msgspec.Struct):
    data: list[_PoolingItem]
    usage: _Usage = msgspec.field(default_factory=_Usage)


_decode_embeddings = msgspec.json.Decoder(_EmbeddingResponse).decode
_decode_pooling = msgspec.json.Decoder(_PoolingResponse).decode


class _PoolingClient(ABC, Generic[_T]):
    """One route of one engine. ``model`` may be left out where that engine takes its own."""

    kind: ClassVar[str]
    path: ClassVar[str]

    def __init__(
        self, engine: EngineClient, model: str | None, key: str | None, metrics: Metrics
    ) -> None:
        self.engine = engine
        self._model_field = {} if model is None else {"model": model}
        self._headers = [(b"content-type", b"application/json")]
        if key:
            self._headers.append((b"authorization", f"Bearer {key}".encode()))
        self._metrics = metrics

    @abstractmethod
    def _parse(self, content: bytes) -> tuple[_T, int]:
        """What a reply says, and how many tokens were read for it."""

    async def _request_counted(self, labels: tuple[str, str], **fields: Any) -> _T | str:
        """What the reply says, or what became of the request: ``error``, ``timeout`` or
        ``bad-reply``."""
        began, metrics = time.perf_counter(), self._metrics
        told = await self.request(**fields)
        outcome = told if isinstance(told, str) else "ok"
        metrics.pooling_requests.labels(self.kind, *labels, outcome).inc()
        if isinstance(told, str):
            metrics.fail_open.labels(labels[1], f"{self.kind}-{told}").inc()
            return told
        result, tokens = told
        metrics.pooling_tokens.labels(self.kind, *labels).inc(tokens)
        seconds = time.perf_counter() - began
        metrics.pooling_seconds.labels(self.kind, *labels).observe(seconds)
        return result

    async def request(self, **fields: Any) -> tuple[_T, int] | str:
        """The same uncounted, with the tokens that were read."""
        try:
            async with asyncio.timeout(self.engine.settings.probe_timeout):
                body = msgspec.json.encode({**self._model_field, **fields})
                return self._parse(await self.engine.post(self.path, body, self._headers))
        except TimeoutError:
            return "timeout"
        except (BadReply, msgspec.MsgspecError, LookupError, TypeError, ValueError):
            return "bad-reply"
        except GatewayError:
            return "error"


class Embedder(_PoolingClient[tuple[float, ...]]):
    """Any OpenAI endpoint for embeddings."""

    kind = "embedding"
    path = "/v1/embeddings"

    async def embed(self, text: str, labels: tuple[str, str]) -> tuple[float, ...] | str:
        """The text's vector, or why there is none. ``labels``: the model and the policy that it is
        asked for."""
        return await self._request_counted(labels, input=text, encoding_format="float")

    def _parse(self, content: bytes) -> tuple[tuple[float, ...], int]:
        told = _decode_embeddings(content)
        return tuple(told.data[0].embedding), told.usage.prompt_tokens


class RewardScorer(_PoolingClient[float]):
    """vLLM's pooling route, behind which reward models of every kind stand: those that tell one
    number of a conversation, and those that tell some of each token or step, of which the last
    counts. ``step``: what a process reward model wants to read behind each step."""

    kind = "reward"
    path = "/pooling"

    def __init__(
        self,
        engine: EngineClient,
        model: str | None,
        key: str | None,
        metrics: Metrics,
        step_separator: str = "",
    ) -> None:
        super().__init__(engine, model, key, metrics)
        self._step_separator = step_separator

    async def score(
        self, messages: Sequence[Any], reasoning: str, labels: tuple[str, str]
    ) -> float | str:
        """Of a conversation of which this was thought so far; higher is better. Or why there is
        none."""
        if self._step_separator:
            paragraphs = [part for part in reasoning.split(_PARAGRAPH_BREAK) if part.strip()]
            reasoning = "".join(part + self._step_separator for part in paragraphs)
        turns = [*messages, {"role": "assistant", "content": reasoning}]
        return await self._request_counted(labels, messages=turns)

    def _parse(self, content: bytes) -> tuple[float, int]:
        told = _decode_pooling(content)
        last = told.data[0].data[-1]
        return float(last[-1] if isinstance(last, list) else last), told.usage.prompt_tokens
