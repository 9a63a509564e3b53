"""Read recordings of version 2 of the log: the same data under the names it had then."""

from __future__ import annotations

from typing import Any

__all__ = ["upgrade"]

_TAGS = {
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
_VALUE_TYPES = {
    "Marks": "TokenizedDialect",
    "Thought": "ReasoningChunk",
    "Closing": "TraceEnding",
    "TraceEnd": "TraceEnded",
    "Embedded": "EmbeddingResult",
    "EmbedFailed": "EmbeddingFailed",
}
_VALUE_KEYS = {
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


def upgrade(line: dict[str, Any]) -> dict[str, Any]:
    """A line of version 2, as decoded from JSON, under the names of this version."""
    kind = line.get("type")
    line = _renamed(line, _LINE_KEYS.get(str(kind), {}))
    if kind == "trace":
        return line | {"events": [_upgrade_event(event) for event in line["events"]]}
    values = {key: _upgrade_value(line[key]) for key in ("dialect", "needs", "probes")}
    return line | values


def _upgrade_event(event: dict[str, Any]) -> dict[str, Any]:
    kind = event["type"]
    event = _renamed(event, _EVENT_KEYS.get(kind, {})) | {"type": _TAGS.get(kind, kind)}
    return {key: _upgrade_value(value) for key, value in event.items()}


def _upgrade_value(value: Any) -> Any:
    """A value that ``serialization`` wrote, at any depth."""
    if isinstance(value, list):
        return [_upgrade_value(part) for part in value]
    if not isinstance(value, dict):
        return value
    kind = str(value.get("type"))
    value = _renamed(value, _VALUE_KEYS.get(kind, {}))
    parts = {key: _upgrade_value(part) for key, part in value.items()}
    return parts | {"type": _VALUE_TYPES[kind]} if kind in _VALUE_TYPES else parts


def _renamed(fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in fields.items()}
