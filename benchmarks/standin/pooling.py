"""Responses of auxiliary models: embeddings of texts, and the reward of a trace so far."""

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
    """One unit vector per text: hashed counts of its words, in any order."""
    inputs = body.get("input")
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestRefused(400, "1 validation error:\n  input", "Bad Request", "body.input")
    data = [
        {"index": index, "object": "embedding", "embedding": _embed(text)}
        for index, text in enumerate(texts)
    ]
    return _list_response("embd-standin", model, data, sum(len(text) // 4 for text in texts))


def _embed(text: str) -> list[float]:
    vector = [0.0] * _DIMENSIONS
    for word in _WORD.findall(text.casefold()):
        vector[crc32(word.encode()) % _DIMENSIONS] += 1.0
    length = math.hypot(*vector) or 1.0
    return [x / length for x in vector]


def reward_response(body: Mapping[str, Any], model: str) -> bytes:
    """One reward between 0 and 1 for the last message: lower for each "Wait" in it."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRefused(400, "1 validation error:\n  messages", "Bad Request", "body.messages")
    trace = str(messages[-1].get("content"))
    data = [{"index": 0, "object": "pooling", "data": [1 / (1 + trace.count("Wait"))]}]
    return _list_response("pool-standin", model, data, len(trace) // 4)


def _list_response(response_id: str, model: str, data: list[dict[str, Any]], tokens: int) -> bytes:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    fields = {"id": response_id, "object": "list", "created": 1, "model": model, "data": data}
    return wire.dump_json({**fields, "usage": usage | {"prompt_tokens_details": None}})
