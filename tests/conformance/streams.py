"""Merge the events of a stream, so that streams with other chunk borders compare equal.

The engine puts as many tokens into a chunk as are ready, sends the finish reason with the last text
or after it, and interleaves choices in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["merged_events"]

# Texts split across chunks, and lists with an entry per token.
_TEXT_FIELDS = {
    "content",
    "reasoning",
    "reasoning_content",
    "text",
    "thinking",
    "delta",
    "arguments",
}
_TEXT_FIELDS |= {"partial_json", "snapshot"}
_LIST_FIELDS = {"token_ids", "tokens", "token_logprobs", "top_logprobs", "text_offset"}
# If a chunk has both, the reasoning precedes the answer.
_ANSWER_FIELDS = {"content", "tool_calls"}
# Fields of every chunk of chat and raw completions.
_ENVELOPE_FIELDS = ("id", "object", "created", "model")


def merged_events(events: Sequence[Any]) -> list[Any]:
    """Merge neighbouring events that are parts of one text or list.

    Chunks with choices are first split into one event per choice and field, without null fields,
    and sorted by choice: texts, lists, the rest.
    """
    merged: list[Any] = []
    for part in sorted((part for event in events for part in _split_event(event)), key=_sort_key):
        if merged and _skeleton(merged[-1]) == _skeleton(part):
            merged[-1] = _concatenated(merged[-1], part)
        else:
            merged.append(part)
    return merged


def _split_event(event: Any) -> Iterator[Any]:
    match event:
        case {"choices": [*choices]}:
            envelope = {key: event[key] for key in _ENVELOPE_FIELDS if key in event}
            for choice in choices:
                for part in _split_choice(choice):
                    yield envelope | {"choices": [{"index": choice["index"]} | part]}
            done = not choices or any(choice["finish_reason"] for choice in choices)
            # Before the last chunk, usage depends on the chunk borders.
            dropped = {"choices", *_ENVELOPE_FIELDS} | (set() if done else {"usage"})
            if rest := _without_empty(
                {key: value for key, value in event.items() if key not in dropped}
            ):
                yield envelope | {"choices": []} | rest
        case _:
            yield event


def _split_choice(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a choice in a chunk, one field each."""
    rest = {
        key: value for key, value in _without_empty(choice).items() if key not in ("index", "delta")
    }
    delta = _without_empty(choice.get("delta") or {})
    for key, value in sorted(delta.items(), key=lambda item: item[0] in _ANSWER_FIELDS):
        for entry in _split_tool_calls(value) if key == "tool_calls" else [value]:
            yield {"delta": {key: entry}}
    for key in ("text", "logprobs", "token_ids"):
        if key in rest:
            yield {key: rest.pop(key)}
    if rest:
        yield rest


def _split_tool_calls(calls: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The parts of tool calls: the function without arguments, then the arguments."""
    for call in calls:
        function = dict(call.get("function", {}))
        arguments = function.pop("arguments", None)
        if function:
            yield [{**call, "function": function}]
        if arguments:
            yield [{"index": call.get("index"), "function": {"arguments": arguments}}]


def _without_empty(value: Any) -> Any:
    """The value without nulls, and without empty texts, lists and objects."""
    match value:
        case dict():
            kept = {key: _without_empty(item) for key, item in value.items()}
            return {key: item for key, item in kept.items() if item not in (None, "", [], {})}
        case list():
            return [_without_empty(item) for item in value]
    return value


def _sort_key(event: Any) -> tuple[float, int]:
    """Sort choices by index and field; other events first, in their order, usage last."""
    match event:
        case {"choices": []}:
            return (float("inf"), 0)
        case {"choices": [{"index": index, **part}]}:
            kinds = [("delta", "text"), ("logprobs",), ("token_ids",)]
            for at, kind in enumerate(kinds):
                if any(key in part for key in kind):
                    return (index, at)
            return (index, len(kinds))
    return (0, 0)


def _skeleton(value: Any, key: str = "") -> Any:
    """The value without the texts and lists that grow; parts with equal skeletons are merged."""
    match value:
        case dict():
            return {k: _skeleton(v, k) for k, v in value.items()}
        case list():
            # Entries of log-probabilities grow too; choices and content parts do not.
            return (
                ["…"] if value and _is_growing_list(key, value) else [_skeleton(v) for v in value]
            )
        case str() if value and key in _TEXT_FIELDS:
            return "…"
    return value


def _is_growing_list(key: str, value: list[Any]) -> bool:
    entry = value[0]
    return key in _LIST_FIELDS or (isinstance(entry, dict) and "logprob" in entry)


def _concatenated(one: Any, two: Any, key: str = "") -> Any:
    match one:
        case dict():
            return {k: _concatenated(v, two[k], k) for k, v in one.items()}
        case list() if one and _is_growing_list(key, one):
            return one + two
        case list():
            return [_concatenated(a, b) for a, b in zip(one, two, strict=True)]
        case str() if one and key in _TEXT_FIELDS:
            return one + two
    return one
