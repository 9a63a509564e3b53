"""Read recordings of log version 2: the same data as in version 3, with other names."""

from __future__ import annotations

from typing import Any

__all__ = ["upgrade_line"]

_EVENT_TAGS = {
    "opened": "prompt",
    "piece": "chunk",
    "place": "checkpoint",
    "drawn": "probe",
    "represented": "embedding",
    "served": "cut",
}
_EVENT_KEYS = {
    "opened": {"ids": "prompt_token_ids"},
    "piece": {"ids": "token_ids", "calls": "has_tool_calls", "ending": "finish_reason"},
    "drawn": {"asked": "sent_at", "prefilled": "prefilled_tokens", "decoded": "decoded_tokens"},
    "represented": {"asked": "sent_at"},
    "served": {"asked": "sent_at", "began": "first_chunk_seconds", "ending": "finish_reason"},
}
_LINE_KEYS = {
    "trace": {"prompt": "prompt_id", "sample": "sample_index"},
    "recording": {"marks": "dialect", "engine": "engine_version", "embedder": "embedder_name"},
}
_CLASS_NAMES = {
    "Marks": "TokenizedDialect",
    "Thought": "ReasoningChunk",
    "Closing": "TraceEnding",
    "TraceEnd": "TraceEnded",
    "Embedded": "EmbeddingResult",
    "EmbedFailed": "EmbeddingFailed",
}
_FIELD_NAMES = {
    "Marks": {"dialect": "definition", "markers": "matcher"},
    "Probe": {"closing": "close_trace", "top": "top_logprobs", "ending": "score_end"},
    "ProbeResult": {"top": "top_logprobs", "ending": "end_logprob"},
    "Stop": {"text": "text_name"},
    "Extend": {"text": "text_name", "bias": "end_bias"},
    "Needs": {
        "thoughts": "reasoning_chunks",
        "ending": "end_logprob",
        "extends": "trace_endings",
        "bias": "end_bias",
        "series": "min_checkpoints",
    },
}


def upgrade_line(line: dict[str, Any]) -> dict[str, Any]:
    """A line of version 2, decoded from JSON, with the names of version 3. The number in
    ``version`` stays 2, so no version 3 traces are appended to the file."""
    kind = str(line.get("type"))
    line = _rename_keys(line, _LINE_KEYS.get(kind, {}))
    if kind == "trace":
        return line | {"events": [_upgrade_event(event) for event in line["events"]]}
    values = {key: _upgrade_value(line[key]) for key in ("dialect", "needs", "probes")}
    return line | values


def _upgrade_event(event: dict[str, Any]) -> dict[str, Any]:
    kind = event["type"]
    event = _rename_keys(event, _EVENT_KEYS.get(kind, {}))
    event["type"] = _EVENT_TAGS.get(kind, kind)
    if "result" in event:  # the only serialized value in an event
        event["result"] = _upgrade_value(event["result"])
    return event


def _upgrade_value(value: Any) -> Any:
    """A value that ``serialization`` wrote, at any depth."""
    if isinstance(value, list):
        return [_upgrade_value(part) for part in value]
    if not isinstance(value, dict):
        return value
    class_name = str(value.get("type"))
    value = _rename_keys(value, _FIELD_NAMES.get(class_name, {}))
    parts = {key: _upgrade_value(part) for key, part in value.items()}
    return parts | {"type": _CLASS_NAMES[class_name]} if class_name in _CLASS_NAMES else parts


def _rename_keys(fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in fields.items()}
