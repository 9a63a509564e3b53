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

from server.engine import BadReply, Engine
from server.errors import GatewayError
from server.metrics import Metrics

__all__ = ["Embedder", "Rewarder"]

_PARAGRAPH = "\n\n"
_T = TypeVar("_T")


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Vector(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Pooled(msgspec.Struct):
    data: list[Any]


class _Poolings(msgspec.Struct):
    data: list[_Pooled]
    usage: _Usage = msgspec.field(default_factory=_Usage)


_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode
_decode_poolings = msgspec.json.Decoder(_Poolings).decode


class _Endpoint(ABC, Generic[_T]):
    """One route of one engine. ``model`` may be left out where that engine takes its own."""

    kind: ClassVar[str]
    path: ClassVar[str]

    def __init__(
        self, engine: Engine, model: str | None, key: str | None, metrics: Metrics
    ) -> None:
        self.engine = engine
        self._named = {} if model is None else {"model": model}
        self._headers = [(b"content-type", b"application/json")]
        if key:
            self._headers.append((b"authorization", f"Bearer {key}".encode()))
        self._metrics = metrics

    @abstractmethod
    def _read(self, content: bytes) -> tuple[_T, int]:
        """What a reply says, and how many tokens were read for it."""

    async def _ask(self, labels: tuple[str, str], **fields: Any) -> _T | str:
        """What the reply says, or what became of the request: ``error``, ``timeout`` or
        ``bad-reply``."""
        began, metrics = time.perf_counter(), self._metrics
        told = await self.asked(**fields)
        outcome = told if isinstance(told, str) else "ok"
        metrics.pooling.labels(self.kind, *labels, outcome).inc()
        if isinstance(told, str):
            metrics.fail_open.labels(labels[1], f"{self.kind}-{told}").inc()
            return told
        result, tokens = told
        metrics.pooling_tokens.labels(self.kind, *labels).inc(tokens)
        seconds = time.perf_counter() - began
        metrics.pooling_seconds.labels(self.kind, *labels).observe(seconds)
        return result

    async def asked(self, **fields: Any) -> tuple[_T, int] | str:
        """The same uncounted, with the tokens that were read."""
        try:
            async with asyncio.timeout(self.engine.settings.probe_timeout):
                body = msgspec.json.encode({**self._named, **fields})
                return self._read(await self.engine.post(self.path, body, self._headers))
        except TimeoutError:
            return "timeout"
        except (BadReply, msgspec.MsgspecError, LookupError, TypeError, ValueError):
            return "bad-reply"
        except GatewayError:
            return "error"


class Embedder(_Endpoint[tuple[float, ...]]):
    """Any OpenAI endpoint for embeddings."""

    kind = "embedding"
    path = "/v1/embeddings"

    async def embed(self, text: str, labels: tuple[str, str]) -> tuple[float, ...] | str:
        """The text's vector, or why there is none. ``labels``: the model and the policy that it is
        asked for."""
        return await self._ask(labels, input=text, encoding_format="float")

    def _read(self, content: bytes) -> tuple[tuple[float, ...], int]:
        told = _decode_embeddings(content)
        return tuple(told.data[0].embedding), told.usage.prompt_tokens


class Rewarder(_Endpoint[float]):
    """vLLM's pooling route, behind which reward models of every kind stand: those that tell one
    number of a conversation, and those that tell some of each token or step, of which the last
    counts. ``step``: what a process reward model wants to read behind each step."""

    kind = "reward"
    path = "/pooling"

    def __init__(
        self, engine: Engine, model: str | None, key: str | None, metrics: Metrics, step: str = ""
    ) -> None:
        super().__init__(engine, model, key, metrics)
        self._step = step

    async def reward(
        self, messages: Sequence[Any], thought: str, labels: tuple[str, str]
    ) -> float | str:
        """Of a conversation of which this was thought so far; higher is better. Or why there is
        none."""
        if self._step:
            paragraphs = [part for part in thought.split(_PARAGRAPH) if part.strip()]
            thought = "".join(part + self._step for part in paragraphs)
        turns = [*messages, {"role": "assistant", "content": thought}]
        return await self._ask(labels, messages=turns)

    def _read(self, content: bytes) -> tuple[float, int]:
        told = _decode_poolings(content)
        last = told.data[0].data[-1]
        return float(last[-1] if isinstance(last, list) else last), told.usage.prompt_tokens
