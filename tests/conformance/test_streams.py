"""Merging ignores how a stream is divided into chunks, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.streams import merged_events

Token = tuple[str, str]
"""A field of a delta, and a piece of its text."""


def chunk(delta: dict[str, Any], index: int = 0, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None} | fields
    return {"id": "chatcmpl-1", "choices": [choice], "usage": None}


def cut(tokens: Sequence[Token], sizes: Sequence[int], separate_finish: bool) -> list[Any]:
    """A stream of ``tokens`` in chunks of ``sizes``; the finish reason is in a separate chunk or in
    the last one with text."""
    events = [chunk({"role": "assistant", "content": ""})]
    at = 0
    for size in [*sizes, len(tokens)]:
        texts: dict[str, str] = {}
        entries = [{"token": text, "logprob": -0.5} for _, text in tokens[at : at + size]]
        for field, text in tokens[at : at + size]:
            texts[field] = texts.get(field, "") + text
        # The engine writes the answer's field first.
        if texts:
            delta = dict(sorted(texts.items()))
            events.append(chunk(delta, logprobs={"content": entries}))
        at += size
    if separate_finish or len(events) == 1:
        events.append(chunk({}))
    [choice] = events[-1]["choices"]
    choice |= {"finish_reason": "stop", "stop_reason": None}
    return [*events, {"id": "chatcmpl-1", "choices": [], "usage": {"completion_tokens": at}}]


parts = st.text(min_size=1, max_size=3)


@given(
    st.lists(parts, min_size=1),
    st.lists(parts, min_size=1),
    st.lists(st.integers(1, 4)),
    st.booleans(),
)
def test_chunk_borders_do_not_matter(
    reasoning: list[str], content: list[str], sizes: list[int], separate_finish: bool
) -> None:
    """One token per chunk or several, both fields in one chunk, a separate finish or not."""
    tokens = [("reasoning", text) for text in reasoning] + [("content", text) for text in content]
    whole = merged_events(cut(tokens, [1] * len(tokens), separate_finish=True))
    # Without the usage event: here its count depends on `sizes`, unlike the engine's.
    ours = merged_events(cut(tokens, sizes, separate_finish))
    assert ours[:-1] == whole[:-1]
    texts = [event["choices"][0]["delta"] for event in whole[1:3]]
    assert texts == [{"reasoning": "".join(reasoning)}, {"content": "".join(content)}]


@given(st.lists(st.tuples(st.integers(0, 1), parts)), st.randoms())
def test_choices_may_be_interleaved(tokens: list[tuple[int, str]], chance: Any) -> None:
    """Only the order within a choice matters."""
    events = [chunk({"content": text}, index) for index, text in tokens]
    in_order = sorted(events, key=lambda event: event["choices"][0]["index"])
    assert merged_events(events) == merged_events(in_order)


def test_a_tool_call_may_be_split_across_chunks() -> None:
    """It is the same in one chunk or in three."""
    name = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "judge"}}
    arguments = [{"index": 0, "function": {"arguments": text}} for text in ("{", "}")]
    three = [chunk({"tool_calls": [entry]}) for entry in (name, *arguments)]
    one = [chunk({"tool_calls": [name, *arguments]})]
    assert merged_events(three) == merged_events(one)
    assert len(merged_events(one)) == 2


def test_events_of_another_api_keep_their_order() -> None:
    """Only parts of one text are merged."""
    events = [
        {"type": "message_start"},
        {"type": "content_block_delta", "delta": {"thinking": "a"}},
        {"type": "content_block_delta", "delta": {"thinking": "b"}},
        {"type": "content_block_delta", "delta": {"text": "c", "citations": None}},
    ]
    assert [event.get("delta") for event in merged_events(events)] == [
        None,
        {"thinking": "ab"},
        {"text": "c", "citations": None},
    ]


FIRST = {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    "other",
    [
        [chunk(FIRST), chunk({"content": "ab"}), chunk({}, finish_reason="length")],
        [chunk(FIRST), chunk({"content": "ac"}), chunk({}, finish_reason="stop")],
        [chunk(FIRST), chunk({"reasoning": "ab"}), chunk({}, finish_reason="stop")],
        [chunk({"content": "ab"}), chunk({}, finish_reason="stop")],
        [chunk(FIRST), chunk({"content": "ab"})],
        [chunk(FIRST), chunk({"content": "ab"}), chunk({}, finish_reason="stop", more=1)],
        [chunk(FIRST), chunk({"content": "ab"}, 1), chunk({}, finish_reason="stop")],
    ],
)
def test_content_does_matter(other: list[Any]) -> None:
    """A text, its field, a role, a finish reason, a choice, or an additional field."""
    events = [chunk(FIRST), chunk({"content": "ab"}), chunk({}, finish_reason="stop")]
    assert merged_events(events) != merged_events(other)
