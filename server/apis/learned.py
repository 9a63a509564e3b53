"""How this engine serves these APIs itself, where that is its own affair and nowhere told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from server.engine import BadReply, Engine
from server.errors import GatewayError

__all__ = ["Learned", "learn"]

Headers = Sequence[tuple[bytes, bytes]]
_USER = {"role": "user", "content": "Hi"}
_SYSTEM = {"role": "system", "content": "Hm"}


@dataclass(frozen=True, slots=True)
class Learned:
    """``merges_system``: whether system prompts among the messages are put before them all, which
    hangs on the model's template; None where the engine does not say."""

    merges_system: bool | None = None


async def learn(engine: Engine, model: str, headers: Headers) -> Learned:
    """Ask the engine. What it does not answer stays unknown."""
    return Learned(await _merges_system(engine, model, headers))


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
    body = msgspec.json.encode({"model": model, **asked})
    try:
        content = await engine.post(path, body, headers)
        reply = msgspec.json.decode(content, type=dict[str, Any])
    except (GatewayError, BadReply, msgspec.MsgspecError):
        return None
    count = reply.get("input_tokens", reply.get("count"))
    return count if isinstance(count, int) else None
