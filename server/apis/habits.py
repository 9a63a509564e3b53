"""How this engine serves these APIs itself, where that is its own affair and nowhere told."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server.engine import TRANSPORT_ERRORS, BadReply, Engine
from server.errors import GatewayError
from server.sse import EventSplitter, data_of

__all__ = ["Habits", "learn"]

Headers = Sequence[tuple[bytes, bytes]]
_RESPONSES = "/v1/responses"
_SHORT = {"input": "Hi", "max_output_tokens": 1}
# With all that is told again and has keys of its own; greedy, it would not tell ``top_p``.
_RICH = {
    "input": "Hi",
    "temperature": 1,
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    "tool_choice": "none",
}
_USER = {"role": "user", "content": "Hi"}
_SYSTEM = {"role": "system", "content": "Hm"}


@dataclass(frozen=True, slots=True)
class Habits:
    """``merges_system``: whether system prompts among Messages are put before them all, which
    hangs on the model's template; None where the engine does not say. ``response``: a response
    before it has begun, for its keys and defaults; empty where the engine shows none. ``stores``:
    whether it keeps responses, so that one can be asked for again."""

    merges_system: bool | None = None
    response: Mapping[str, Any] = field(default_factory=dict)
    stores: bool = False
    context: int | None = None
    """Tokens that prompt and output may have together."""
    most: int | None = None
    """Tokens that the operator lets any output have."""

    def longest_output(self, prompt: int) -> int | None:
        """Tokens that a response to so many may have."""
        left = None if self.context is None else self.context - prompt
        return min((limit for limit in (left, self.most) if limit is not None), default=None)


async def learn(engine: Engine, model: str, context: int | None, headers: Headers) -> Habits:
    """Ask the engine. What it does not answer stays unknown."""
    merges = await _merges_system(engine, model, headers)
    plain = await _response_begun(engine, {"model": model, "input": "Hi"}, headers)
    rich = await _response_begun(engine, {"model": model, **_RICH}, headers)
    if plain is None or rich is None:
        return Habits(merges)
    whole = await _post(engine, _RESPONSES, {**_SHORT, "model": model}, headers)
    if whole is None:
        return Habits(merges)
    most = plain["max_output_tokens"]
    if most + whole["usage"]["input_tokens"] == context:
        most = None  # all that is left
    status, _ = await engine.get(f"{_RESPONSES}/{whole['id']}", headers)
    own = ("id", "created_at")  # of that one response
    response = {key: value for key, value in rich.items() if key not in own}
    response["temperature"] = plain["temperature"]
    return Habits(merges, response, status == 200, context, most)


async def _response_begun(
    engine: Engine, asked: Mapping[str, Any], headers: Headers
) -> dict[str, Any] | None:
    """What the first event of a streamed response says of it; more is not waited for."""
    splitter = EventSplitter()
    with contextlib.suppress(GatewayError, LookupError, msgspec.MsgspecError, *TRANSPORT_ERRORS):
        body = msgspec.json.encode({**asked, "stream": True})
        response = await engine.send("POST", _RESPONSES, headers, body)
        try:
            async for data in response.stream:  # type: ignore[union-attr]
                for event in splitter.feed(data):
                    said = msgspec.json.decode(data_of(event) or b"{}", type=dict[str, Any])
                    return dict(said["response"])
        finally:
            await response.aclose()
    return None


async def _merges_system(engine: Engine, model: str, headers: Headers) -> bool | None:
    """Tell by the number of tokens: let it count in its way, and render both ways."""
    asked = {"system": "Hm", "messages": [_USER, _SYSTEM, _USER]}
    counted = await _count(engine, "/v1/messages/count_tokens", model, asked, headers)
    merged = {"messages": [{"role": "system", "content": "HmHm"}, _USER, _USER]}
    apart = {"messages": [_SYSTEM, _USER, _SYSTEM, _USER]}
    ways = {
        True: await _count(engine, "/tokenize", model, merged, headers),
        False: await _count(engine, "/tokenize", model, apart, headers),
    }
    fits = [way for way, count in ways.items() if count is not None and count == counted]
    return fits[0] if len(fits) == 1 else None


async def _count(
    engine: Engine, path: str, model: str, asked: dict[str, Any], headers: Headers
) -> int | None:
    reply = await _post(engine, path, {"model": model, **asked}, headers) or {}
    count = reply.get("input_tokens", reply.get("count"))
    return count if isinstance(count, int) else None


async def _post(
    engine: Engine, path: str, asked: Mapping[str, Any], headers: Headers
) -> dict[str, Any] | None:
    with contextlib.suppress(GatewayError, BadReply, msgspec.MsgspecError):
        content = await engine.post(path, msgspec.json.encode(asked), headers)
        return msgspec.json.decode(content, type=dict[str, Any])
    return None
