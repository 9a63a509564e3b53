"""What a stream tells does not depend on how it was cut; that is all that is forgiven."""

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


def cut(tokens: Sequence[Token], sizes: Sequence[int], finish_apart: bool) -> list[Any]:
    """A stream of ``tokens``, so many a chunk, the finish beside the last ones or behind them."""
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
    if finish_apart or len(events) == 1:
        events.append(chunk({}))
    [choice] = events[-1]["choices"]
    choice |= {"finish_reason": "stop", "stop_reason": None}
    return [*events, {"id": "chatcmpl-1", "choices": [], "usage": {"completion_tokens": at}}]


pieces = st.text(min_size=1, max_size=3)


@given(
    st.lists(pieces, min_size=1),
    st.lists(pieces, min_size=1),
    st.lists(st.integers(1, 4)),
    st.booleans(),
)
def test_how_a_stream_is_cut_does_not_matter(
    thought: list[str], said: list[str], sizes: list[int], finish_apart: bool
) -> None:
    """One token a chunk, or several, both fields in one, the finish beside a text or not."""
    tokens = [("reasoning", text) for text in thought] + [("content", text) for text in said]
    whole = merged_events(cut(tokens, [1] * len(tokens), finish_apart=True))
    # How many tokens there were is told by the usage alone, and that is the same.
    ours = merged_events(cut(tokens, sizes, finish_apart))
    assert ours[:-1] == whole[:-1]
    texts = [event["choices"][0]["delta"] for event in whole[1:3]]
    assert texts == [{"reasoning": "".join(thought)}, {"content": "".join(said)}]


@given(st.lists(st.tuples(st.integers(0, 1), pieces)), st.randoms())
def test_choices_take_turns_as_they_like(tokens: list[tuple[int, str]], chance: Any) -> None:
    """Each in its own order."""
    events = [chunk({"content": text}, index) for index, text in tokens]
    apart = sorted(events, key=lambda event: event["choices"][0]["index"])
    assert merged_events(events) == merged_events(apart)


def test_what_is_called_and_with_what() -> None:
    """In one chunk or in three."""
    name = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "judge"}}
    arguments = [{"index": 0, "function": {"arguments": text}} for text in ("{", "}")]
    three = [chunk({"tool_calls": [entry]}) for entry in (name, *arguments)]
    one = [chunk({"tool_calls": [name, *arguments]})]
    assert merged_events(three) == merged_events(one)
    assert len(merged_events(one)) == 2


def test_events_of_another_api_stand_as_they_came() -> None:
    """Only pieces of one text are made one."""
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
def test_what_is_told_does_matter(other: list[Any]) -> None:
    """A text, its field, a role, a finish, a choice, or a field of one side alone."""
    events = [chunk(FIRST), chunk({"content": "ab"}), chunk({}, finish_reason="stop")]
    assert merged_events(events) != merged_events(other)
