"""Compare two replies to one request: equal except for ids and times, or of one shape and shorter.

A reply is the client's result as JSON. If the client streamed, its field ``stream`` is the list of
events.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from tests.conformance.streams import merged_events

__all__ = [
    "FeatureReport",
    "Verdict",
    "compare_reports",
    "nearly_equal",
    "normalized",
    "shape_of",
    "trace_length",
]

FeatureReport = Mapping[str, Any]
"""What a client's script prints for a feature: `feature`, `kind`, and `reply` or `error`."""

# Fields that differ between any two replies to the same request.
_VOLATILE_FIELDS = {
    *("id", "created", "created_at", "completed_at", "request_id", "item_id", "response_id"),
    *("call_id", "tool_call_id", "session_id", "uuid", "signature", "sequence_number"),
    # Prefix-cache hits; after a cut those of the second engine call.
    *("cached_tokens", "cache_read_input_tokens", "cache_read", "input_tokens_cache_read"),
    *("created_cache_tokens", "cache_creation_input_tokens"),
}
_REASONING_FIELDS = {"reasoning", "reasoning_content", "thinking"}
_REASONING_TOKEN_FIELDS = {"reasoning_tokens", "reasoning_output_tokens"}
_OUTPUT_TOKEN_FIELDS = {"completion_tokens", "output_tokens", "total_output_tokens"}
# Fields whose values belong to the protocol; any other text may differ after a cut.
_PROTOCOL_FIELDS = {
    "finish_reason",
    "stop_reason",
    "role",
    "object",
    "type",
    "status",
    "model",
    "name",
}
_ADJOURN_FIELD = "adjourn"
_LOGPROB_TOLERANCE = 1e-2  # rounding depends on the batch size


class Verdict(Enum):
    """The result of one comparison, a cell of the page. Only good ones need no reason."""

    EQUAL = "equal"
    SHORTER = "shorter"
    SAME_ERROR = "same error"
    UNCHANGED = "not shortened"
    NOT_SHORTER = "not shorter"
    OTHER_SHAPE = "other shape"
    DIFFERS = "differs"
    ABSENT = "absent"

    @property
    def is_good(self) -> bool:
        return self in (Verdict.EQUAL, Verdict.SHORTER)


def compare_reports(
    direct_reports: Sequence[FeatureReport],
    gateway_report: FeatureReport | None,
    *,
    policy_fires: bool,
) -> Verdict:
    """Compare a client's report through a gateway with its reports from the engine itself.

    There are several ``direct_reports``, because an engine's own replies may differ.
    ``policy_fires``: whether the gateway's policy cuts traces.
    """
    if not direct_reports or gateway_report is None:
        return Verdict.ABSENT
    if "error" in gateway_report or any("error" in line for line in direct_reports):
        same = any(line.get("error") == gateway_report.get("error") for line in direct_reports)
        if_same = Verdict.EQUAL if gateway_report["kind"] == "error" else Verdict.SAME_ERROR
        return if_same if same else Verdict.DIFFERS
    cut = policy_fires and gateway_report["kind"] == "thinks"
    replies, reply = (
        [normalized(line["reply"]) for line in direct_reports],
        normalized(gateway_report["reply"]),
    )
    if any(nearly_equal(one, reply) for one in replies):
        return Verdict.UNCHANGED if cut else Verdict.EQUAL
    return _compare_shortened(replies, reply) if cut else Verdict.DIFFERS


def _compare_shortened(replies: Sequence[Any], reply: Any) -> Verdict:
    """A cut reply must have the shape of a direct reply, and a shorter trace than all of them."""
    if all(shape_of(one) != shape_of(reply) for one in replies):
        return Verdict.OTHER_SHAPE
    shorter = trace_length(reply) < min(map(trace_length, replies))
    return Verdict.SHORTER if shorter else Verdict.NOT_SHORTER


def normalized(reply: Any) -> Any:
    """The reply with merged stream events and without volatile fields."""
    match reply:
        case dict():
            return {key: _normalized_field(key, value) for key, value in reply.items()}
        case list():
            return [normalized(item) for item in reply]
    return reply


def _normalized_field(key: str, value: Any) -> Any:
    if key in _VOLATILE_FIELDS and not isinstance(value, dict | list):
        return None if value is None else "…"
    if key == "stream" and isinstance(value, list):
        return merged_events([normalized(event) for event in value])
    return normalized(value)


def nearly_equal(one: Any, two: Any) -> bool:
    """Deep equality, except that floats may differ by the tolerance."""
    match one, two:
        case dict(), dict():
            return one.keys() == two.keys() and all(nearly_equal(one[key], two[key]) for key in one)
        case list(), list():
            return len(one) == len(two) and all(map(nearly_equal, one, two))
        case float(), float() | int():
            return math.isclose(one, two, abs_tol=_LOGPROB_TOLERANCE)
    return bool(one == two)


def shape_of(reply: Any, key: str = "") -> Any:
    """Keys, types, order and values of protocol fields; neither texts nor lengths."""
    match reply:
        case dict():
            return {k: shape_of(v, k) for k, v in sorted(reply.items()) if k != _ADJOURN_FIELD}
        case list():
            kinds = [shape_of(item, key) for item in reply]
            return [kind for at, kind in enumerate(kinds) if not at or kind != kinds[at - 1]]
        case str() if key not in _PROTOCOL_FIELDS:
            return "text" if reply else ""
        case int() | float() if not isinstance(reply, bool):
            return "number"
    return reply


def trace_length(reply: Any) -> float:
    """The length of the trace: its token count if reported, else the length of its text if shown,
    else the token count of the response, else the length of a raw completion."""
    fields = list(_walk_fields(reply))
    reasoning_tokens = sum(
        v for k, v in fields if k in _REASONING_TOKEN_FIELDS and isinstance(v, int)
    )
    reasoning_chars = sum(
        len(v) for k, v in fields if k in _REASONING_FIELDS and isinstance(v, str)
    )
    output_tokens = sum(
        v for k, v in fields if k in _OUTPUT_TOKEN_FIELDS and isinstance(v, int | float)
    )
    completion_chars = sum(len(v) for k, v in fields if k == "text" and isinstance(v, str))
    return float(reasoning_tokens or reasoning_chars or output_tokens or completion_chars)


def _walk_fields(reply: Any) -> Iterator[tuple[str, Any]]:
    match reply:
        case dict():
            for key, value in reply.items():
                yield key, value
                yield from _walk_fields(value)
        case list():
            for item in reply:
                yield from _walk_fields(item)
