"""Two replies to one request, compared: equal but for ids and times, or of one shape and shorter.

A reply is whatever a client made of what it got, as JSON. Where a client streamed, the list of its
events stands under ``stream``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from tests.conformance.streams import told

__all__ = ["Line", "Verdict", "equal", "plain", "shape", "thought", "verdict"]

Line = Mapping[str, Any]
"""What a client's script prints for a feature: `feature`, `kind`, and `reply` or `error`."""

# What differs between two replies to the same request, whoever answers.
_VOLATILE = {
    *("id", "created", "created_at", "completed_at", "request_id", "item_id", "response_id"),
    *("call_id", "tool_call_id", "session_id", "uuid", "signature", "sequence_number"),
    # What the engine's cache held; after a cut it is that of the second call.
    *("cached_tokens", "cache_read_input_tokens", "cache_read", "input_tokens_cache_read"),
    *("created_cache_tokens", "cache_creation_input_tokens"),
}
_THOUGHTS = {"reasoning", "reasoning_content", "thinking"}
_COUNTED = {"reasoning_tokens", "reasoning_output_tokens"}
_COUNTS = {"completion_tokens", "output_tokens", "total_output_tokens"}
# Words of a protocol; any other text may say what it likes behind a cut.
_WORDS = {"finish_reason", "stop_reason", "role", "object", "type", "status", "model", "name"}
_NOTE = "adjourn"
_NEAR = 1e-2  # of log-probabilities: a batch of another size rounds otherwise


class Verdict(Enum):
    """What a cell says. ``good`` ones need no reason."""

    EQUAL = "equal"
    SHORTER = "shorter"
    SAME_ERROR = "same error"
    UNTOUCHED = "not shortened"
    NOT_SHORTER = "not shorter"
    OTHER_SHAPE = "other shape"
    DIFFERS = "differs"
    ABSENT = "absent"

    @property
    def good(self) -> bool:
        return self in (Verdict.EQUAL, Verdict.SHORTER)


def verdict(direct: Sequence[Line], ours: Line | None, *, fires: bool) -> Verdict:
    """A client's line for one feature, against those it had from the engine itself.

    ``direct`` are several: what an engine says twice may differ by itself.
    """
    if not direct or ours is None:
        return Verdict.ABSENT
    if "error" in ours or any("error" in line for line in direct):
        same = any(line.get("error") == ours.get("error") for line in direct)
        known = Verdict.EQUAL if ours["kind"] == "error" else Verdict.SAME_ERROR
        return known if same else Verdict.DIFFERS
    cut = fires and ours["kind"] == "thinks"
    replies, reply = [plain(line["reply"]) for line in direct], plain(ours["reply"])
    if any(equal(one, reply) for one in replies):
        return Verdict.UNTOUCHED if cut else Verdict.EQUAL
    return _cut(replies, reply) if cut else Verdict.DIFFERS


def _cut(replies: Sequence[Any], reply: Any) -> Verdict:
    """The shape must be one of the engine's own, the trace shorter than in all of them."""
    if all(shape(one) != shape(reply) for one in replies):
        return Verdict.OTHER_SHAPE
    shorter = thought(reply) < min(map(thought, replies))
    return Verdict.SHORTER if shorter else Verdict.NOT_SHORTER


def plain(reply: Any) -> Any:
    """A reply with what its streams told, and without what no two replies share."""
    match reply:
        case dict():
            return {key: _plain_field(key, value) for key, value in reply.items()}
        case list():
            return [plain(item) for item in reply]
    return reply


def _plain_field(key: str, value: Any) -> Any:
    if key in _VOLATILE and not isinstance(value, dict | list):
        return None if value is None else "…"
    if key == "stream" and isinstance(value, list):
        return told([plain(event) for event in value])
    return plain(value)


def equal(one: Any, two: Any) -> bool:
    """Deep, with numbers that need only be near."""
    match one, two:
        case dict(), dict():
            return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
        case list(), list():
            return len(one) == len(two) and all(map(equal, one, two))
        case float(), float() | int():
            return math.isclose(one, two, abs_tol=_NEAR)
    return bool(one == two)


def shape(reply: Any, key: str = "") -> Any:
    """Keys, types, order and the protocol's own words; not what was said, nor how much."""
    match reply:
        case dict():
            return {k: shape(v, k) for k, v in sorted(reply.items()) if k != _NOTE}
        case list():
            kinds = [shape(item, key) for item in reply]
            return [kind for at, kind in enumerate(kinds) if not at or kind != kinds[at - 1]]
        case str() if key not in _WORDS:
            return "text" if reply else ""
        case int() | float() if not isinstance(reply, bool):
            return "number"
    return reply


def thought(reply: Any) -> float:
    """How long the trace is: its tokens where they are told, else its text where that is shown,
    else the tokens of the whole response, else the text of a raw completion."""
    fields = list(_fields(reply))
    counted = sum(v for k, v in fields if k in _COUNTED and isinstance(v, int))
    shown = sum(len(v) for k, v in fields if k in _THOUGHTS and isinstance(v, str))
    whole = sum(v for k, v in fields if k in _COUNTS and isinstance(v, int | float))
    text = sum(len(v) for k, v in fields if k == "text" and isinstance(v, str))
    return float(counted or shown or whole or text)


def _fields(reply: Any) -> Iterator[tuple[str, Any]]:
    match reply:
        case dict():
            for key, value in reply.items():
                yield key, value
                yield from _fields(value)
        case list():
            for item in reply:
                yield from _fields(item)
