"""What the models beside an engine's say: vectors of texts, and a reward of a trace so far."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from benchmarks.standin import wire_format as wire
from benchmarks.standin.chat import RequestRefused

__all__ = ["embeddings_response", "reward_response"]

_DIMENSIONS = 64
_WORD = re.compile(r"\w+")


def embeddings_response(body: Mapping[str, Any], model: str) -> bytes:
    """A vector a text, by the words in it, in whatever order."""
    asked = body.get("input")
    texts = [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestRefused(400, "1 validation error:\n  input", "Bad Request", "body.input")
    told = [
        {"index": index, "object": "embedding", "embedding": _embed(text)}
        for index, text in enumerate(texts)
    ]
    return _list_response("embd-standin", model, told, sum(len(text) // 4 for text in texts))


def _embed(text: str) -> list[float]:
    vector = [0.0] * _DIMENSIONS
    for word in _WORD.findall(text.casefold()):
        vector[crc32(word.encode()) % _DIMENSIONS] += 1.0
    length = math.hypot(*vector) or 1.0
    return [x / length for x in vector]


def reward_response(body: Mapping[str, Any], model: str) -> bytes:
    """A reward as a reward model's one label tells it: the fewer second thoughts the better."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRefused(400, "1 validation error:\n  messages", "Bad Request", "body.messages")
    thought = str(messages[-1].get("content"))
    told = [{"index": 0, "object": "pooling", "data": [1 / (1 + thought.count("Wait"))]}]
    return _list_response("pool-standin", model, told, len(thought) // 4)


def _list_response(name: str, model: str, data: list[dict[str, Any]], tokens: int) -> bytes:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    whole = {"id": name, "object": "list", "created": 1, "model": model, "data": data}
    return wire.dump_json({**whole, "usage": usage | {"prompt_tokens_details": None}})
