"""The embedder as the recorder speaks to it, and its vectors as the log keeps them."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import AsyncIterator, Sequence

import aiohttp
import msgspec

from adjourn.lab.engine_client import KEEPALIVE, EngineError

__all__ = ["EmbeddingClient", "pack_vector", "unpack_vector"]

_FLOAT16_BYTES = 2
"""Bytes of a number: a cosine of two such vectors is right to three digits."""


class EmbeddingClient:
    """An OpenAI endpoint for embeddings. Raises what the engine's calls do."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, model: str | None, key: str | None
    ) -> None:
        self.name = model or url
        self._session = session
        self._url = f"{url.rstrip('/')}/v1/embeddings"
        self._model_field = {} if model is None else {"model": model}
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str, model: str | None, key: str | None
    ) -> AsyncIterator[EmbeddingClient]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield cls(session, url, model, key)

    async def embed(self, text: str) -> tuple[float, ...]:
        body = {**self._model_field, "input": text, "encoding_format": "float"}
        async with self._session.post(self._url, json=body, headers=self._headers) as reply:
            if reply.status != 200:
                raise EngineError(f"/v1/embeddings answered {reply.status}")
            told = msgspec.json.decode(await reply.read())
        try:
            return tuple(map(float, told["data"][0]["embedding"]))
        except (LookupError, TypeError, ValueError):
            raise EngineError("/v1/embeddings answered without a vector") from None


def pack_vector(vector: Sequence[float]) -> bytes:
    """The vector's direction, in halves; one that points nowhere is empty."""
    longest = max(map(abs, vector), default=0.0)
    if not 0.0 < longest < math.inf:
        return b""
    return struct.pack(f"<{len(vector)}e", *(x / longest for x in vector))


def unpack_vector(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // _FLOAT16_BYTES}e", data)
