"""The setting ``reasoning_field``: under which key clients get the reasoning."""

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


def rewritten(
    field: ReasoningField, *deltas: dict[str, Any], finish: str | None = None
) -> list[Any]:
    """The deltas as a client gets them; with ``finish`` the last one has that finish reason."""
    rewrite, shown = make_reasoning_rewriter(field), []
    for number, delta in enumerate(deltas):
        reason = finish if number == len(deltas) - 1 else None
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        data = json.dumps({"id": "a", "choices": [choice]}, separators=(",", ":")).encode()
        event = encode_event(data)
        if rewrite is not None:
            event = rewrite(event, decode_chunk(data).choices[0])
        shown.append(json.loads(event[6:])["choices"][0]["delta"])
    return shown


@given(TEXTS, st.sampled_from(["reasoning", "reasoning_content"]), st.none() | TEXTS)
def test_only_the_key_changes(reasoning: str, original: str, content: str | None) -> None:
    """Whatever the texts contain; with `both`, the two keys have the same value."""
    delta = {original: reasoning} | ({} if content is None else {"content": content})
    rest = {key: value for key, value in delta.items() if key != original}
    for name in ("reasoning", "reasoning_content"):
        assert rewritten(name, delta) == [{name: reasoning} | rest]  # type: ignore[arg-type]
    assert rewritten("both", delta) == [
        {"reasoning": reasoning, "reasoning_content": reasoning} | rest
    ]
    assert rewritten("upstream", delta) == [delta]


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1), st.lists(st.text(max_size=8)))
def test_tags_enclose_the_reasoning_once(thoughts: list[str], answers: list[str]) -> None:
    """In the content: one opening tag, all reasoning, one closing tag, then the answer."""
    deltas = [{"reasoning": text} for text in thoughts] + [{"content": text} for text in answers]
    content = "".join(
        delta.get("content") or "" for delta in rewritten("tags", *deltas, finish="stop")
    )
    whole = "".join(answers)
    expected = "<think>\n" + "".join(thoughts) + "\n</think>\n\n"
    assert content.startswith(expected)  # the answer may begin with line breaks of its own
    assert content[len(expected) :].lstrip("\n") == whole.lstrip("\n")


def test_a_response_without_a_trace_has_no_tags() -> None:
    """The content is only the answer."""
    assert rewritten("tags", {"content": "7"}, finish="stop") == [{"content": "7"}]


def test_other_keys_keep_their_bytes() -> None:
    """Nothing but the key is encoded again."""
    event = encode_event(
        b'{"id":"a","choices":[{"index":0,"delta":{"reasoning":"\\u00e9"},"x":1.50}]}'
    )
    chunk = decode_chunk(event[6:-2])
    assert rename_reasoning("reasoning_content")(event, chunk.choices[0]) == event.replace(
        b'"reasoning"', b'"reasoning_content"'
    )


def test_the_keys_of_an_unstreamed_response() -> None:
    """The skeleton message is renamed in a copy."""
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
def field_gateway(request: pytest.FixtureRequest, standin: str) -> Iterator[tuple[str, str]]:
    """The value of ``reasoning_field``, and a gateway with it."""
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
def test_every_kind_of_response_uses_the_field(
    adjourn: str, field_gateway: tuple[str, str], fields: dict[str, Any]
) -> None:
    """Streamed or not, cut, rescued or passed through: the same texts under the other key."""
    name, url = field_gateway
    plain = chat(adjourn, **fields).json()["choices"][0]["message"]
    ours = chat(url, **fields).json()["choices"][0]["message"]
    deltas = [c["choices"][0]["delta"] for c in stream(url, **fields)[:-1] if c["choices"]]
    assert "reasoning" not in ours
    assert not any("reasoning" in delta for delta in deltas)
    reasoning, content = plain["reasoning"], plain["content"]
    if name == "tags":
        expected = f"<think>\n{reasoning}\n</think>\n\n" + content.lstrip("\n")
        assert ours["content"] == expected
        streamed_content = "".join(delta.get("content") or "" for delta in deltas)
        assert streamed_content == expected
    else:
        assert (ours[name], ours["content"]) == (reasoning, content)
        assert "".join(delta.get(name) or "" for delta in deltas) == reasoning
