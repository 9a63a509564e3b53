"""Reasoning under the name that a client reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.server.stream.chunk import decode_chunk, encode_event
from adjourn.server.stream.reasoning_field import (
    ReasoningField,
    make_reasoning_rewriter,
    rename_reasoning,
    rename_skeleton_reasoning,
)
from benchmarks.services import free_port, start_gateway
from tests.gateway_client import chat, stream

TEXTS = st.text(max_size=12)
CUT = {"policy": "budget", "max": 20, "grace": 0}


def told(spelling: ReasoningField, *deltas: dict[str, Any], finish: str | None = None) -> list[Any]:
    """The deltas as a client gets them; the last one finishes the choice."""
    spell, shown = make_reasoning_rewriter(spelling), []
    for number, delta in enumerate(deltas):
        reason = finish if number == len(deltas) - 1 else None
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        data = json.dumps({"id": "a", "choices": [choice]}, separators=(",", ":")).encode()
        event = encode_event(data)
        if spell is not None:
            event = spell(event, decode_chunk(data).choices[0])
        shown.append(json.loads(event[6:])["choices"][0]["delta"])
    return shown


@given(TEXTS, st.sampled_from(["reasoning", "reasoning_content"]), st.none() | TEXTS)
def test_a_name_and_nothing_else(thought: str, came: str, content: str | None) -> None:
    """Whatever stands in the texts, only the key changes; under both, the value is the same."""
    delta = {came: thought} | ({} if content is None else {"content": content})
    rest = {key: value for key, value in delta.items() if key != came}
    for name in ("reasoning", "reasoning_content"):
        assert told(name, delta) == [{name: thought} | rest]  # type: ignore[arg-type]
    assert told("both", delta) == [{"reasoning": thought, "reasoning_content": thought} | rest]
    assert told("upstream", delta) == [delta]


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1), st.lists(st.text(max_size=8)))
def test_tags(thoughts: list[str], answers: list[str]) -> None:
    """One opening, one closing, all that was thought between them, the answer behind."""
    deltas = [{"reasoning": text} for text in thoughts] + [{"content": text} for text in answers]
    content = "".join(delta.get("content") or "" for delta in told("tags", *deltas, finish="stop"))
    whole = "".join(answers)
    expected = "<think>\n" + "".join(thoughts) + "\n</think>\n\n"
    assert content.startswith(expected)  # which may end in the answer's own line breaks
    assert content[len(expected) :].lstrip("\n") == whole.lstrip("\n")


def test_a_response_without_a_trace_has_no_tags() -> None:
    """An answer is an answer."""
    assert told("tags", {"content": "7"}, finish="stop") == [{"content": "7"}]


def test_other_keys_keep_their_bytes() -> None:
    """Nothing is written anew but the key."""
    event = encode_event(
        b'{"id":"a","choices":[{"index":0,"delta":{"reasoning":"\\u00e9"},"x":1.50}]}'
    )
    chunk = decode_chunk(event[6:-2])
    assert rename_reasoning("reasoning_content")(event, chunk.choices[0]) == event.replace(
        b'"reasoning"', b'"reasoning_content"'
    )


def test_a_skeleton() -> None:
    """The keys of an unstreamed reply follow."""
    skeleton = {"choices": [{"message": {"role": "assistant", "reasoning": "x"}}]}
    assert rename_skeleton_reasoning(skeleton, "tags")["choices"][0]["message"] == {
        "role": "assistant"
    }
    assert (
        "reasoning_content"
        in rename_skeleton_reasoning(skeleton, "reasoning_content")["choices"][0]["message"]
    )
    assert rename_skeleton_reasoning(skeleton, "upstream") is skeleton
    assert skeleton["choices"][0]["message"]["reasoning"] == "x"


@pytest.fixture(scope="module", params=["reasoning_content", "tags"])
def spelling(request: pytest.FixtureRequest, standin: str) -> Iterator[tuple[str, str]]:
    """A gateway with this spelling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADJOURN_REASONING_FIELD", request.param)
        with start_gateway(standin, free_port(), "--policy", "deer", "--hold-out", "0") as url:
            yield request.param, url


@pytest.mark.parametrize(
    "fields",
    [
        {"standin": {"tokens": 80}, "adjourn": CUT},
        {"standin": {"tokens": 30}},
        {"standin": {"tokens": 30}, "stop": "END"},
        {"standin": {"tokens": 30}, "max_tokens": 20},
        {"standin": {"tokens": 30}, "adjourn": {"policy": "off"}},
    ],
    ids=["cut", "whole", "stop", "rescue", "off"],
)
def test_every_response_is_spelt(
    adjourn: str, spelling: tuple[str, str], fields: dict[str, Any]
) -> None:
    """Streamed and whole, whatever becomes of the trace, the same texts under the other name."""
    name, url = spelling
    plain = chat(adjourn, **fields).json()["choices"][0]["message"]
    ours = chat(url, **fields).json()["choices"][0]["message"]
    deltas = [c["choices"][0]["delta"] for c in stream(url, **fields)[:-1] if c["choices"]]
    assert "reasoning" not in ours
    assert not any("reasoning" in delta for delta in deltas)
    thought, content = plain["reasoning"], plain["content"]
    if name == "tags":
        expected = f"<think>\n{thought}\n</think>\n\n" + content.lstrip("\n")
        assert ours["content"] == expected
        told_ = "".join(delta.get("content") or "" for delta in deltas)
        assert told_ == expected
    else:
        assert (ours[name], ours["content"]) == (thought, content)
        assert "".join(delta.get(name) or "" for delta in deltas) == thought
