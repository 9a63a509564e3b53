"""Under which name a client gets reasoning: clients read different ones, and some only text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from server.sse import data_of
from server.wire import Choice, event_of, given

__all__ = ["Spelling", "Tags", "renamed", "speller", "spelt"]

Spelling = Literal["upstream", "reasoning", "reasoning_content", "both", "tags"]
Speller = Callable[[bytes, Choice], bytes]
_NAMES = ("reasoning", "reasoning_content")
_OPEN, _CLOSE = "<think>\n", "\n</think>\n\n"


def speller(spelling: Spelling) -> Speller | None:
    """What edits the chat events of one choice, in order; None where they stay as they are."""
    if spelling == "upstream":
        return None
    if spelling == "tags":
        return Tags()
    return renamed(*(_NAMES if spelling == "both" else (spelling,)))


def renamed(*names: str) -> Speller:
    """Reasoning under each of these names."""

    def rename(event: bytes, choice: Choice) -> bytes:
        came = 0 if choice.delta.reasoning is not None else 1
        thought = choice.delta.reasoning if came == 0 else choice.delta.reasoning_content
        if thought is None:
            return event
        # A quote within a text is escaped, so in a chunk's bytes this is a key.
        key = b'"%b":' % _NAMES[came].encode()
        if len(names) == 1:
            return event.replace(key, b'"%b":' % names[0].encode(), 1)
        other = b'"%b":%b,' % (_NAMES[1 - came].encode(), msgspec.json.encode(thought))
        return event.replace(key, other + key, 1)

    return rename


class Tags:
    """Reasoning as content, between tags."""

    def __init__(self) -> None:
        self._open = False

    def __call__(self, event: bytes, choice: Choice) -> bytes:
        thought, delta = choice.delta.thought, choice.delta
        ends = delta.content or given(delta.tool_calls) or choice.finish_reason is not None
        if not thought and not (self._open and ends):
            return event
        text = thought
        if thought and not self._open:
            self._open, text = True, _OPEN + thought
        if ends:
            self._open, text = False, text + _CLOSE
        return _as_content(event, text)


def _as_content(event: bytes, text: str) -> bytes:
    """The event with this text, and no reasoning, before its content."""
    chunk = msgspec.json.decode(data_of(event) or b"{}")
    delta = chunk["choices"][0]["delta"]
    for name in _NAMES:
        delta.pop(name, None)
    delta["content"] = text + (delta.get("content") or "").lstrip("\n" if _CLOSE in text else "")
    return event_of(msgspec.json.encode(chunk))


def spelt(skeleton: Mapping[str, Any], spelling: Spelling) -> Mapping[str, Any]:
    """An unstreamed reply's keys with reasoning under its name; ``skeleton`` stays as it is."""
    if spelling == "upstream" or not skeleton.get("choices"):
        return skeleton
    wanted = {"both": _NAMES, "tags": ()}.get(spelling, (spelling,))
    choice = dict(skeleton["choices"][0])
    message = {k: v for k, v in choice.get("message", {}).items() if k not in _NAMES}
    choice["message"] = message | dict.fromkeys(wanted)
    return {**skeleton, "choices": [choice]}
