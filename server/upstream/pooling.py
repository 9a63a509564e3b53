"""Clients of the auxiliary models: an embedder, and a reward model that scores partial traces.

Each is served by an engine of its own: vLLM with ``--runner pooling``, or a compatible one. An
error there is counted, and returned as the reason why there is no result; the stream that needs it
continues.
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
    """Requests to one endpoint of one engine. ``model`` None lets that engine use its own."""

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
        """The result in a response, and the number of tokens that the model read for it."""

    async def _request_counted(self, labels: tuple[str, str], **fields: Any) -> _T | str:
        """Send a request and count it in the metrics. Returns the result, or why there is none:
        ``error``, ``timeout`` or ``bad-reply``."""
        began, metrics = time.perf_counter(), self._metrics
        response = await self.request(**fields)
        outcome = response if isinstance(response, str) else "ok"
        metrics.pooling_requests.labels(self.kind, *labels, outcome).inc()
        if isinstance(response, str):
            metrics.fail_open.labels(labels[1], f"{self.kind}-{response}").inc()
            return response
        result, tokens = response
        metrics.pooling_tokens.labels(self.kind, *labels).inc(tokens)
        seconds = time.perf_counter() - began
        metrics.pooling_seconds.labels(self.kind, *labels).observe(seconds)
        return result

    async def request(self, **fields: Any) -> tuple[_T, int] | str:
        """Send a request without counting it. Returns the result and the tokens read, or why there
        is no result."""
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
    """Any endpoint with OpenAI's API of embeddings."""

    kind = "embedding"
    path = "/v1/embeddings"

    async def embed(self, text: str, labels: tuple[str, str]) -> tuple[float, ...] | str:
        """The vector of a text, or why there is none: ``error``, ``timeout`` or ``bad-reply``.

        ``labels``: model and policy of the request that needs it.
        """
        return await self._request_counted(labels, input=text, encoding_format="float")

    def _parse(self, content: bytes) -> tuple[tuple[float, ...], int]:
        response = _decode_embeddings(content)
        return tuple(response.data[0].embedding), response.usage.prompt_tokens


class RewardScorer(_PoolingClient[float]):
    """vLLM's pooling endpoint, which serves reward models of every kind.

    An outcome reward model returns one number for a conversation. A process reward model returns
    numbers for each token or step; the last one counts. ``step_separator``: the text that a
    process reward model expects after each step.
    """

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
        """The reward of the reasoning so far after these messages, higher is better; or why there
        is none: ``error``, ``timeout`` or ``bad-reply``. ``labels`` as for an embedding."""
        if self._step_separator:
            paragraphs = [part for part in reasoning.split(_PARAGRAPH_BREAK) if part.strip()]
            reasoning = "".join(part + self._step_separator for part in paragraphs)
        turns = [*messages, {"role": "assistant", "content": reasoning}]
        return await self._request_counted(labels, messages=turns)

    def _parse(self, content: bytes) -> tuple[float, int]:
        response = _decode_pooling(content)
        last = response.data[0].data[-1]
        return float(last[-1] if isinstance(last, list) else last), response.usage.prompt_tokens
