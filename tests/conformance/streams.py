"""What a stream tells, however it was cut: the engine puts into a chunk as many tokens as are
ready, the last one's text beside its finish or not, and lets choices take turns as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["merged_events"]

# Texts that come in pieces, and lists that grow with them.
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
# Of two texts in one chunk the trace came first.
_ANSWER_FIELDS = {"content", "tool_calls"}
# What every chunk of chat and raw completions bears.
_ENVELOPE_FIELDS = ("id", "object", "created", "model")


def merged_events(events: Sequence[Any]) -> list[Any]:
    """The events with neighbours that are pieces of one thing made one. Chunks with choices are
    parted first: choice by choice, its texts, its lists, the rest, without what is null."""
    out: list[Any] = []
    for part in sorted((part for event in events for part in _split_event(event)), key=_sort_key):
        if out and _skeleton(out[-1]) == _skeleton(part):
            out[-1] = _concatenated(out[-1], part)
        else:
            out.append(part)
    return out


def _split_event(event: Any) -> Iterator[Any]:
    match event:
        case {"choices": [*choices]}:
            envelope = {key: event[key] for key in _ENVELOPE_FIELDS if key in event}
            for choice in choices:
                for part in _split_choice(choice):
                    yield envelope | {"choices": [{"index": choice["index"]} | part]}
            done = not choices or any(choice["finish_reason"] for choice in choices)
            # Before the last chunk, usage tells how far the stream was cut.
            gone = {"choices", *_ENVELOPE_FIELDS} | (set() if done else {"usage"})
            if rest := _without_empty(
                {key: value for key, value in event.items() if key not in gone}
            ):
                yield envelope | {"choices": []} | rest
        case _:
            yield event


def _split_choice(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A choice's chunk, one thing at a time."""
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
    """Who is called, and with what: in one chunk or in several."""
    for call in calls:
        function = dict(call.get("function", {}))
        arguments = function.pop("arguments", None)
        if function:
            yield [{**call, "function": function}]
        if arguments:
            yield [{"index": call.get("index"), "function": {"arguments": arguments}}]


def _without_empty(value: Any) -> Any:
    """Without what says nothing: null, and empty texts, lists and objects."""
    match value:
        case dict():
            kept = {key: _without_empty(item) for key, item in value.items()}
            return {key: item for key, item in kept.items() if item not in (None, "", [], {})}
        case list():
            return [_without_empty(item) for item in value]
    return value


def _sort_key(event: Any) -> tuple[float, int]:
    """Where a part stands: other events as they came, choices one after the other."""
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
    """All but the pieces."""
    match value:
        case dict():
            return {k: _skeleton(v, k) for k, v in value.items()}
        case list():
            # Entries of log-probabilities are pieces, too; choices and parts are not.
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
