"""Undocumented engine defaults of /v1/messages and /v1/responses, learned by probing."""

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
# Sets every echoed field that is an object, to learn its keys. Not greedy: a greedy response does
# not echo the default ``top_p``.
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
    """What the engine does where the APIs leave it open.

    ``merges_system_messages``: True if it moves system messages of /v1/messages in front of all
    others, which depends on the model's chat template; None if unknown.
    ``example_response``: an initial response of /v1/responses, for its keys and default values;
    empty if unknown. ``stores_responses``: True if a response can be fetched again by its id.
    """

    merges_system_messages: bool | None = None
    example_response: Mapping[str, Any] = field(default_factory=dict)
    stores_responses: bool = False
    context_length: int | None = None
    """Most tokens of prompt and output together."""
    max_output_tokens: int | None = None
    """Most output tokens that the engine's operator allows."""

    def output_limit(self, prompt_tokens: int) -> int | None:
        """Most tokens of a response to a prompt of this many tokens; None if unknown."""
        left = None if self.context_length is None else self.context_length - prompt_tokens
        return min(
            (limit for limit in (left, self.max_output_tokens) if limit is not None), default=None
        )


async def detect_engine_defaults(
    engine: EngineClient, model: str, context_length: int | None, headers: Headers
) -> EngineDefaults:
    """Probe the engine with short requests. Defaults that it does not reveal stay unknown."""
    merges = await _detect_system_merging(engine, model, headers)
    plain = await _fetch_initial_response(engine, {"model": model, "input": "Hi"}, headers)
    full = await _fetch_initial_response(engine, {"model": model, **_FULL_REQUEST}, headers)
    if plain is None or full is None:
        return EngineDefaults(merges)
    short = await _post_json(engine, _RESPONSES_PATH, {**_SHORT_REQUEST, "model": model}, headers)
    if short is None:
        return EngineDefaults(merges)
    output_limit = plain["max_output_tokens"]
    if output_limit + short["usage"]["input_tokens"] == context_length:
        output_limit = None  # not a limit of the operator: it is what the context has left
    status, _ = await engine.get(f"{_RESPONSES_PATH}/{short['id']}", headers)
    individual = ("id", "created_at")  # differ in each response
    response = {key: value for key, value in full.items() if key not in individual}
    response["temperature"] = plain["temperature"]
    return EngineDefaults(merges, response, status == 200, context_length, output_limit)


async def _fetch_initial_response(
    engine: EngineClient, body: Mapping[str, Any], headers: Headers
) -> dict[str, Any] | None:
    """The response object in the first event of a stream, which is then closed; None on errors."""
    splitter = EventSplitter()
    with contextlib.suppress(GatewayError, LookupError, msgspec.MsgspecError, *TRANSPORT_ERRORS):
        content = msgspec.json.encode({**body, "stream": True})
        response = await engine.send("POST", _RESPONSES_PATH, headers, content)
        try:
            async for data in response.stream:  # type: ignore[union-attr]
                for event in splitter.feed(data):
                    fields = msgspec.json.decode(event_data(event) or b"{}", type=dict[str, Any])
                    return dict(fields["response"])
        finally:
            await response.aclose()
    return None


async def _detect_system_merging(engine: EngineClient, model: str, headers: Headers) -> bool | None:
    """Compare the engine's token count of such a request with those of both possible prompts.

    None if neither or both match.
    """
    body = {"system": "Hm", "messages": [_USER_MESSAGE, _SYSTEM_MESSAGE, _USER_MESSAGE]}
    counted = await _count_tokens(engine, "/v1/messages/count_tokens", model, body, headers)
    merged = {"messages": [{"role": "system", "content": "HmHm"}, _USER_MESSAGE, _USER_MESSAGE]}
    separate = {"messages": [_SYSTEM_MESSAGE, _USER_MESSAGE, _SYSTEM_MESSAGE, _USER_MESSAGE]}
    counts = {
        True: await _count_tokens(engine, "/tokenize", model, merged, headers),
        False: await _count_tokens(engine, "/tokenize", model, separate, headers),
    }
    matching = [merges for merges, n in counts.items() if n is not None and n == counted]
    return matching[0] if len(matching) == 1 else None


async def _count_tokens(
    engine: EngineClient, path: str, model: str, body: dict[str, Any], headers: Headers
) -> int | None:
    reply = await _post_json(engine, path, {"model": model, **body}, headers) or {}
    count = reply.get("input_tokens", reply.get("count"))
    return count if isinstance(count, int) else None


async def _post_json(
    engine: EngineClient, path: str, body: Mapping[str, Any], headers: Headers
) -> dict[str, Any] | None:
    with contextlib.suppress(GatewayError, BadReply, msgspec.MsgspecError):
        content = await engine.post(path, msgspec.json.encode(body), headers)
        return msgspec.json.decode(content, type=dict[str, Any])
    return None
