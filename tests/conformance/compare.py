"""Two replies to one request, compared: equal but for ids and times, or of one shape and shorter.

A reply is whatever a client made of what it got, as JSON. Where a client streamed, the list of its
events stands under ``stream``.
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

# What differs between two replies to the same request, whoever answers.
_VOLATILE_FIELDS = {
    *("id", "created", "created_at", "completed_at", "request_id", "item_id", "response_id"),
    *("call_id", "tool_call_id", "session_id", "uuid", "signature", "sequence_number"),
    # What the engine's cache held; after a cut it is that of the second call.
    *("cached_tokens", "cache_read_input_tokens", "cache_read", "input_tokens_cache_read"),
    *("created_cache_tokens", "cache_creation_input_tokens"),
}
_REASONING_FIELDS = {"reasoning", "reasoning_content", "thinking"}
_REASONING_TOKEN_FIELDS = {"reasoning_tokens", "reasoning_output_tokens"}
_OUTPUT_TOKEN_FIELDS = {"completion_tokens", "output_tokens", "total_output_tokens"}
# Words of a protocol; any other text may say what it likes behind a cut.
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
_LOGPROB_TOLERANCE = 1e-2  # of log-probabilities: a batch of another size rounds otherwise


class Verdict(Enum):
    """What a cell says. ``good`` ones need no reason."""

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
    """A client's line for one feature, against those it had from the engine itself.

    ``direct`` are several: what an engine says twice may differ by itself.
    """
    if not direct_reports or gateway_report is None:
        return Verdict.ABSENT
    if "error" in gateway_report or any("error" in line for line in direct_reports):
        same = any(line.get("error") == gateway_report.get("error") for line in direct_reports)
        known = Verdict.EQUAL if gateway_report["kind"] == "error" else Verdict.SAME_ERROR
        return known if same else Verdict.DIFFERS
    cut = policy_fires and gateway_report["kind"] == "thinks"
    replies, reply = (
        [normalized(line["reply"]) for line in direct_reports],
        normalized(gateway_report["reply"]),
    )
    if any(nearly_equal(one, reply) for one in replies):
        return Verdict.UNCHANGED if cut else Verdict.EQUAL
    return _compare_shortened(replies, reply) if cut else Verdict.DIFFERS


def _compare_shortened(replies: Sequence[Any], reply: Any) -> Verdict:
    """The shape must be one of the engine's own, the trace shorter than in all of them."""
    if all(shape_of(one) != shape_of(reply) for one in replies):
        return Verdict.OTHER_SHAPE
    shorter = trace_length(reply) < min(map(trace_length, replies))
    return Verdict.SHORTER if shorter else Verdict.NOT_SHORTER


def normalized(reply: Any) -> Any:
    """A reply with what its streams told, and without what no two replies share."""
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
    """Deep, with numbers that need only be near."""
    match one, two:
        case dict(), dict():
            return one.keys() == two.keys() and all(nearly_equal(one[key], two[key]) for key in one)
        case list(), list():
            return len(one) == len(two) and all(map(nearly_equal, one, two))
        case float(), float() | int():
            return math.isclose(one, two, abs_tol=_LOGPROB_TOLERANCE)
    return bool(one == two)


def shape_of(reply: Any, key: str = "") -> Any:
    """Keys, types, order and the protocol's own words; not what was said, nor how much."""
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
    """How long the trace is: its tokens where they are told, else its text where that is shown,
    else the tokens of the whole response, else the text of a raw completion."""
    fields = list(_walk_fields(reply))
    counted = sum(v for k, v in fields if k in _REASONING_TOKEN_FIELDS and isinstance(v, int))
    shown = sum(len(v) for k, v in fields if k in _REASONING_FIELDS and isinstance(v, str))
    whole = sum(v for k, v in fields if k in _OUTPUT_TOKEN_FIELDS and isinstance(v, int | float))
    text = sum(len(v) for k, v in fields if k == "text" and isinstance(v, str))
    return float(counted or shown or whole or text)


def _walk_fields(reply: Any) -> Iterator[tuple[str, Any]]:
    match reply:
        case dict():
            for key, value in reply.items():
                yield key, value
                yield from _walk_fields(value)
        case list():
            for item in reply:
                yield from _walk_fields(item)
