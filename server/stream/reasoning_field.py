"""Rename the field of the reasoning for clients that read another name, or only content."""

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
    """A function that edits the chat events of one choice, called in order; None if none is
    needed."""
    if reasoning_field == "upstream":
        return None
    if reasoning_field == "tags":
        return ThinkTagRewriter()
    return rename_reasoning(*(_FIELD_NAMES if reasoning_field == "both" else (reasoning_field,)))


def rename_reasoning(*names: str) -> ReasoningRewriter:
    """A rewriter that puts the reasoning under each of these names."""

    def rename(event: bytes, choice: Choice) -> bytes:
        used = 0 if choice.delta.reasoning is not None else 1
        text = choice.delta.reasoning if used == 0 else choice.delta.reasoning_content
        if text is None:
            return event
        # Quotes within a JSON string are escaped, so these bytes are a key.
        key = b'"%b":' % _FIELD_NAMES[used].encode()
        if len(names) == 1:
            return event.replace(key, b'"%b":' % names[0].encode(), 1)
        other = b'"%b":%b,' % (_FIELD_NAMES[1 - used].encode(), msgspec.json.encode(text))
        return event.replace(key, other + key, 1)

    return rename


class ThinkTagRewriter:
    """Moves the reasoning into the content, between ``<think>`` tags.

    State: whether the opening tag was written and the closing one was not.
    """

    def __init__(self) -> None:
        self._is_open = False

    def __call__(self, event: bytes, choice: Choice) -> bytes:
        reasoning, delta = choice.delta.reasoning_text, choice.delta
        ends = delta.content or has_value(delta.tool_calls) or choice.finish_reason is not None
        if not reasoning and not (self._is_open and ends):
            return event
        text = reasoning
        if reasoning and not self._is_open:
            self._is_open, text = True, _OPEN_TAG + reasoning
        if ends:
            self._is_open, text = False, text + _CLOSE_TAG
        return _move_to_content(event, text)


def _move_to_content(event: bytes, text: str) -> bytes:
    """The event without reasoning, and with ``text`` before its content."""
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
    """A copy of an unstreamed reply's skeleton with the reasoning's key renamed."""
    if reasoning_field == "upstream" or not skeleton.get("choices"):
        return skeleton
    wanted = {"both": _FIELD_NAMES, "tags": ()}.get(reasoning_field, (reasoning_field,))
    choice = dict(skeleton["choices"][0])
    message = {k: v for k, v in choice.get("message", {}).items() if k not in _FIELD_NAMES}
    choice["message"] = message | dict.fromkeys(wanted)
    return {**skeleton, "choices": [choice]}
