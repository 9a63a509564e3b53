"""Under which name a client gets reasoning: clients read different ones, and some only text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from adjourn.server.stream.chunk import Choice, encode_event, has_value
from adjourn.server.stream.sse import event_data

__all__ = [
    "ReasoningField",
    "ThinkTagRewriter",
    "make_reasoning_rewriter",
    "rename_reasoning",
    "rename_skeleton_reasoning",
]

ReasoningField = Literal["upstream", "reasoning", "reasoning_content", "both", "tags"]
ReasoningRewriter = Callable[[bytes, Choice], bytes]
_FIELD_NAMES = ("reasoning", "reasoning_content")
_OPEN_TAG, _CLOSE_TAG = "<think>\n", "\n</think>\n\n"


def make_reasoning_rewriter(reasoning_field: ReasoningField) -> ReasoningRewriter | None:
    """What edits the chat events of one choice, in order; None where they stay as they are."""
    if reasoning_field == "upstream":
        return None
    if reasoning_field == "tags":
        return ThinkTagRewriter()
    return rename_reasoning(*(_FIELD_NAMES if reasoning_field == "both" else (reasoning_field,)))


def rename_reasoning(*names: str) -> ReasoningRewriter:
    """Reasoning under each of these names."""

    def rename(event: bytes, choice: Choice) -> bytes:
        came = 0 if choice.delta.reasoning is not None else 1
        thought = choice.delta.reasoning if came == 0 else choice.delta.reasoning_content
        if thought is None:
            return event
        # A quote within a text is escaped, so in a chunk's bytes this is a key.
        key = b'"%b":' % _FIELD_NAMES[came].encode()
        if len(names) == 1:
            return event.replace(key, b'"%b":' % names[0].encode(), 1)
        other = b'"%b":%b,' % (_FIELD_NAMES[1 - came].encode(), msgspec.json.encode(thought))
        return event.replace(key, other + key, 1)

    return rename


class ThinkTagRewriter:
    """Reasoning as content, between tags."""

    def __init__(self) -> None:
        self._is_open = False

    def __call__(self, event: bytes, choice: Choice) -> bytes:
        thought, delta = choice.delta.reasoning_text, choice.delta
        ends = delta.content or has_value(delta.tool_calls) or choice.finish_reason is not None
        if not thought and not (self._is_open and ends):
            return event
        text = thought
        if thought and not self._is_open:
            self._is_open, text = True, _OPEN_TAG + thought
        if ends:
            self._is_open, text = False, text + _CLOSE_TAG
        return _move_to_content(event, text)


def _move_to_content(event: bytes, text: str) -> bytes:
    """The event with this text, and no reasoning, before its content."""
    chunk = msgspec.json.decode(event_data(event) or b"{}")
    delta = chunk["choices"][0]["delta"]
    for name in _FIELD_NAMES:
        delta.pop(name, None)
    delta["content"] = text + (delta.get("content") or "").lstrip(
        "\n" if _CLOSE_TAG in text else ""
    )
    return encode_event(msgspec.json.encode(chunk))


def rename_skeleton_reasoning(
    skeleton: Mapping[str, Any], reasoning_field: ReasoningField
) -> Mapping[str, Any]:
    """An unstreamed reply's keys with reasoning under its name; ``skeleton`` stays as it is."""
    if reasoning_field == "upstream" or not skeleton.get("choices"):
        return skeleton
    wanted = {"both": _FIELD_NAMES, "tags": ()}.get(reasoning_field, (reasoning_field,))
    choice = dict(skeleton["choices"][0])
    message = {k: v for k, v in choice.get("message", {}).items() if k not in _FIELD_NAMES}
    choice["message"] = message | dict.fromkeys(wanted)
    return {**skeleton, "choices": [choice]}
