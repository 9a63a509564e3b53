"""The client that the recorder embeds reasoning steps with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec

from adjourn.lab.http_client import EngineError, HttpClient

__all__ = ["EmbeddingClient"]

_PATH = "/v1/embeddings"
_READ_TIMEOUT = 300.0


class EmbeddingClient:
    """An OpenAI-compatible endpoint for embeddings. ``name`` is the model's, or the URL where no
    model is named. Calls raise ENGINE_ERRORS."""

    def __init__(self, client: HttpClient, url: str, model: str | None) -> None:
        self.name = model or url
        self._client = client
        self._model_field = {} if model is None else {"model": model}

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str, model: str | None, key: str | None
    ) -> AsyncIterator[EmbeddingClient]:
        """The embedder at the base URL ``url``, without ``/v1``. Sends no request yet."""
        async with contextlib.aclosing(HttpClient(url, key, _READ_TIMEOUT)) as client:
            yield cls(client, url, model)

    async def embed(self, text: str) -> tuple[float, ...]:
        body = {**self._model_field, "input": text, "encoding_format": "float"}
        reply = msgspec.json.decode(await self._client.post(_PATH, msgspec.json.encode(body)))
        try:
            return tuple(map(float, reply["data"][0]["embedding"]))
        except (LookupError, TypeError, ValueError):
            raise EngineError(f"the reply of {_PATH} has no vector") from None
