"""Which differences the comparison of replies ignores, and which it reports."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.compare import (
    Verdict,
    compare_reports,
    nearly_equal,
    normalized,
    shape_of,
    trace_length,
)


def line(reply: Any, kind: str = "thinks") -> dict[str, Any]:
    return {"feature": "chat", "kind": kind, "reply": reply}


def message(reasoning: str, content: str = "42", **fields: Any) -> dict[str, Any]:
    body = {"role": "assistant", "reasoning": reasoning, "content": content}
    return {"id": "1", "choices": [{"message": body, "finish_reason": "stop"}], **fields}


def test_ids_and_times_may_differ_but_not_be_absent() -> None:
    """A volatile field must be there on both sides, or be null on both."""
    one, two = message("a") | {"created": 1}, message("a") | {"created": 2}
    assert nearly_equal(normalized(one), normalized(two))
    del two["created"]
    assert not nearly_equal(normalized(one), normalized(two))
    assert not nearly_equal(normalized(one), normalized(one | {"created": None}))


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (-0.5, -0.5001, True),
        (-0.5, -0.6, False),
        (1, 2, False),
        (None, "", False),
        ([1], [1, 1], False),
        ({"a": None}, {}, False),
    ],
)
def test_only_floats_may_differ_by_the_tolerance(one: Any, two: Any, same: bool) -> None:
    """Log-probabilities may; counts, nulls and lengths must be equal."""
    assert nearly_equal(one, two) is same


def test_a_shape_has_keys_types_and_order() -> None:
    """Texts do not matter; a type, a null, a finish reason or the order of events does."""
    assert shape_of(message("long", "1")) == shape_of(message("s", "2"))
    assert shape_of(message("a")) == shape_of(message("a", adjourn={"stopped": True}))
    for other in (message("a", other=1), message("a", ""), {"choices": []}):
        assert shape_of(message("a")) != shape_of(other)
    events = [{"type": "thinking_delta"}, {"type": "text_delta"}]
    assert shape_of(events) != shape_of(events[::-1])


def test_the_trace_length_uses_the_best_available_count() -> None:
    """Reasoning tokens, else the reasoning text, else the tokens of the response, else the text of
    a raw completion."""
    counted = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 3}}
    assert trace_length(message("four", usage=counted)) == 3
    assert trace_length(message("four")) == 4
    assert trace_length({"usage": {"completion_tokens": 9}, "reasoning": None}) == 9
    assert trace_length({"choices": [{"text": "I think"}]}) == 7


@pytest.mark.parametrize(
    ("ours", "unfired", "fired"),
    [
        (line(message("a long trace")), Verdict.EQUAL, Verdict.UNCHANGED),
        (line(message("a long")), Verdict.DIFFERS, Verdict.SHORTER),
        (line(message("a longer trace")), Verdict.DIFFERS, Verdict.NOT_SHORTER),
        (line(message("a", more=1)), Verdict.DIFFERS, Verdict.OTHER_SHAPE),
        (line(message("a long trace"), "plain"), Verdict.EQUAL, Verdict.EQUAL),
        (line(message("a long"), "plain"), Verdict.DIFFERS, Verdict.DIFFERS),
        ({"feature": "chat", "kind": "thinks", "error": {}}, Verdict.DIFFERS, Verdict.DIFFERS),
        (None, Verdict.ABSENT, Verdict.ABSENT),
    ],
)
def test_the_verdict_of_a_report(ours: Any, unfired: Verdict, fired: Verdict) -> None:
    """Without a firing policy equal; with one of the same shape and shorter."""
    direct = [line(message("a long trace"))] * 2
    assert compare_reports(direct, ours, policy_fires=False) is unfired
    assert compare_reports(direct, ours, policy_fires=True) is fired


def test_an_error_is_good_only_where_it_is_expected() -> None:
    """If the engine also refuses a feature that should work, the verdict is not good."""
    refused = {"feature": "f", "error": {"type": "BadRequestError", "status": 400}}
    for kind, expected in (("error", Verdict.EQUAL), ("thinks", Verdict.SAME_ERROR)):
        case = refused | {"kind": kind}
        assert compare_reports([case], case, policy_fires=False) is expected
    ours = refused | {"kind": "error", "error": {"type": "APIError", "status": None}}
    assert compare_reports([refused], ours, policy_fires=False) is Verdict.DIFFERS
