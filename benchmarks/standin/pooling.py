"""What the models beside an engine's say: vectors of texts, and a reward of a trace so far."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from benchmarks.standin import wire
from benchmarks.standin.chat import Refused

__all__ = ["embeddings", "pooling"]

_DIMENSIONS = 64
_WORD = re.compile(r"\w+")


def embeddings(body: Mapping[str, Any], model: str) -> bytes:
    """A vector a text, by the words in it, in whatever order."""
    asked = body.get("input")
    texts = [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "1 validation error:\n  input", "Bad Request", "body.input")
    told = [
        {"index": index, "object": "embedding", "embedding": _vector(text)}
        for index, text in enumerate(texts)
    ]
    return _list("embd-standin", model, told, sum(len(text) // 4 for text in texts))


def _vector(text: str) -> list[float]:
    vector = [0.0] * _DIMENSIONS
    for word in _WORD.findall(text.casefold()):
        vector[crc32(word.encode()) % _DIMENSIONS] += 1.0
    length = math.hypot(*vector) or 1.0
    return [x / length for x in vector]


def pooling(body: Mapping[str, Any], model: str) -> bytes:
    """A reward as a reward model's one label tells it: the fewer second thoughts the better."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "1 validation error:\n  messages", "Bad Request", "body.messages")
    thought = str(messages[-1].get("content"))
    told = [{"index": 0, "object": "pooling", "data": [1 / (1 + thought.count("Wait"))]}]
    return _list("pool-standin", model, told, len(thought) // 4)


def _list(name: str, model: str, data: list[dict[str, Any]], tokens: int) -> bytes:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    whole = {"id": name, "object": "list", "created": 1, "model": model, "data": data}
    return wire.dump({**whole, "usage": usage | {"prompt_tokens_details": None}})
