"""How this engine serves these APIs itself, where that is its own affair and nowhere told."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from adjourn.server.errors import GatewayError
from adjourn.server.stream.sse import EventSplitter, event_data
from adjourn.server.upstream.client import TRANSPORT_ERRORS, BadReply, EngineClient

__all__ = ["EngineDefaults", "detect_engine_defaults"]

Headers = Sequence[tuple[bytes, bytes]]
_RESPONSES_PATH = "/v1/responses"
_SHORT_REQUEST = {"input": "Hi", "max_output_tokens": 1}
# With all that is told again and has keys of its own; greedy, it would not tell ``top_p``.
_FULL_REQUEST = {
    "input": "Hi",
    "temperature": 1,
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    "tool_choice": "none",
}
_USER_MESSAGE = {"role": "user", "content": "Hi"}
_SYSTEM_MESSAGE = {"role": "system", "content": "Hm"}


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """``merges_system``: whether system prompts among Messages are put before them all, which
    hangs on the model's template; None where the engine does not say. ``response``: a response
    before it has begun, for its keys and defaults; empty where the engine shows none. ``stores``:
    whether it keeps responses, so that one can be asked for again."""

    merges_system_messages: bool | None = None
    example_response: Mapping[str, Any] = field(default_factory=dict)
    stores_responses: bool = False
    context_length: int | None = None
    """Tokens that prompt and output may have together."""
    max_output_tokens: int | None = None
    """Tokens that the operator lets any output have."""

    def output_limit(self, prompt_tokens: int) -> int | None:
        """Tokens that a response to so many may have."""
        left = None if self.context_length is None else self.context_length - prompt_tokens
        return min(
            (limit for limit in (left, self.max_output_tokens) if limit is not None), default=None
        )


async def detect_engine_defaults(
    engine: EngineClient, model: str, context_length: int | None, headers: Headers
) -> EngineDefaults:
    """Ask the engine. What it does not answer stays unknown."""
    merges = await _detect_system_merging(engine, model, headers)
    plain = await _fetch_initial_response(engine, {"model": model, "input": "Hi"}, headers)
    rich = await _fetch_initial_response(engine, {"model": model, **_FULL_REQUEST}, headers)
    if plain is None or rich is None:
        return EngineDefaults(merges)
    whole = await _post_json(engine, _RESPONSES_PATH, {**_SHORT_REQUEST, "model": model}, headers)
    if whole is None:
        return EngineDefaults(merges)
    most = plain["max_output_tokens"]
    if most + whole["usage"]["input_tokens"] == context_length:
        most = None  # all that is left
    status, _ = await engine.get(f"{_RESPONSES_PATH}/{whole['id']}", headers)
    own = ("id", "created_at")  # of that one response
    response = {key: value for key, value in rich.items() if key not in own}
    response["temperature"] = plain["temperature"]
    return EngineDefaults(merges, response, status == 200, context_length, most)


async def _fetch_initial_response(
    engine: EngineClient, asked: Mapping[str, Any], headers: Headers
) -> dict[str, Any] | None:
    """What the first event of a streamed response says of it; more is not waited for."""
    splitter = EventSplitter()
    with contextlib.suppress(GatewayError, LookupError, msgspec.MsgspecError, *TRANSPORT_ERRORS):
        body = msgspec.json.encode({**asked, "stream": True})
        response = await engine.send("POST", _RESPONSES_PATH, headers, body)
        try:
            async for data in response.stream:  # type: ignore[union-attr]
                for event in splitter.feed(data):
                    said = msgspec.json.decode(event_data(event) or b"{}", type=dict[str, Any])
                    return dict(said["response"])
        finally:
            await response.aclose()
    return None


async def _detect_system_merging(engine: EngineClient, model: str, headers: Headers) -> bool | None:
    """Tell by the number of tokens: let it count in its way, and render both ways."""
    asked = {"system": "Hm", "messages": [_USER_MESSAGE, _SYSTEM_MESSAGE, _USER_MESSAGE]}
    counted = await _count_tokens(engine, "/v1/messages/count_tokens", model, asked, headers)
    merged = {"messages": [{"role": "system", "content": "HmHm"}, _USER_MESSAGE, _USER_MESSAGE]}
    apart = {"messages": [_SYSTEM_MESSAGE, _USER_MESSAGE, _SYSTEM_MESSAGE, _USER_MESSAGE]}
    ways = {
        True: await _count_tokens(engine, "/tokenize", model, merged, headers),
        False: await _count_tokens(engine, "/tokenize", model, apart, headers),
    }
    fits = [way for way, count in ways.items() if count is not None and count == counted]
    return fits[0] if len(fits) == 1 else None


async def _count_tokens(
    engine: EngineClient, path: str, model: str, asked: dict[str, Any], headers: Headers
) -> int | None:
    reply = await _post_json(engine, path, {"model": model, **asked}, headers) or {}
    count = reply.get("input_tokens", reply.get("count"))
    return count if isinstance(count, int) else None


async def _post_json(
    engine: EngineClient, path: str, asked: Mapping[str, Any], headers: Headers
) -> dict[str, Any] | None:
    with contextlib.suppress(GatewayError, BadReply, msgspec.MsgspecError):
        content = await engine.post(path, msgspec.json.encode(asked), headers)
        return msgspec.json.decode(content, type=dict[str, Any])
    return None
