"""A raw completion as the relay sees it, in the engine's own bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from adjourn.policies.session.orders import InsertedText
from adjourn.policies.text.markers import MarkerKind, MarkerMatcher
from adjourn.server.api.completions import CompletionsEndpoint, can_separate_stops
from adjourn.server.api.endpoint import PolicyExtras
from adjourn.server.api.request import parse_completion
from adjourn.server.config import Settings
from adjourn.server.stream.chunk import Chunk, encode_event
from tests.gateway_client import metric_value
from tests.policies.session_helpers import CLOSING, CLOSING_ON_NEWLINE, DIALECT, END, PROMPT, START

PATH = "/v1/completions"


def surface(**fields: Any) -> CompletionsEndpoint:
    body = json.dumps({"model": "m", "prompt": list(PROMPT), **fields}).encode()
    asked = parse_completion(body, {}, Settings(), None, {"m": None})
    return CompletionsEndpoint(asked, dialect=DIALECT, separate_answer=asked.has_stop_strings)


def event(text: str, ids: list[int], prompt: list[int] | None = None, **more: Any) -> bytes:
    """A chunk as vLLM 0.32 writes it where token ids were asked for."""
    choice = {
        "index": 0, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None,
        "prompt_token_ids": prompt, "token_ids": ids, **more,
    }  # fmt: skip
    chunk = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m"}
    return encode_event(json.dumps({**chunk, "choices": [choice]}, separators=(",", ":")).encode())


def shown(made: CompletionsEndpoint, told: bytes) -> dict[str, Any]:
    came = made.render_event(told, made.decode(told[6:-2]))
    assert came is not None
    choice: dict[str, Any] = json.loads(came[6:])["choices"][0]
    return choice


def test_the_main_stream_is_asked_for_ids() -> None:
    """Streamed, with ids; what is ours to do is not asked of the engine."""
    made = surface(n=2, stop="END", max_tokens=9)
    fields = {name: json.loads(bytes(value)) for name, value in made.main_fields.items()}
    assert fields == {
        "model": "m", "prompt": list(PROMPT), "max_tokens": 9, "stream": True,
        "return_token_ids": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_one_choice_is_asked_for_as_the_client_did() -> None:
    """vLLM refuses null here, and that is its own affair."""
    assert "n" not in surface().main_fields
    assert bytes(surface(n=None).main_fields["n"]) == b"null"


def test_the_answer_is_asked_for_by_ids() -> None:
    """The prefix is the prompt; stops and what is left of the limit go with it."""
    fields = surface(stop="END", max_tokens=90).answer_fields([1, 2], 7)
    assert [json.loads(bytes(fields[k])) for k in ("prompt", "stop", "max_tokens")] == [
        [1, 2], "END", 7,
    ]  # fmt: skip


@pytest.mark.parametrize(("fields", "limit"), [({}, 16), ({"max_tokens": 5}, 5)])
def test_the_endpoint_has_a_limit_of_its_own(fields: dict[str, Any], limit: int) -> None:
    """Who sets none gets sixteen tokens."""
    assert surface(**fields).token_limit == limit


def test_ids_that_nobody_asked_for_are_hidden() -> None:
    """The chunk is the engine's, with null where it would have null."""
    made = surface()
    told = event('say "token_ids":[1]', [7, 8], list(PROMPT))
    chunk = made.decode(told[6:-2])
    assert chunk.prompt_token_ids == list(PROMPT)
    assert (chunk.choices[0].delta.reasoning_text, chunk.choices[0].token_ids) == (
        'say "token_ids":[1]', [7, 8],
    )  # fmt: skip
    choice = shown(made, told)
    assert (choice["token_ids"], choice["prompt_token_ids"]) == (None, None)
    assert choice["text"] == 'say "token_ids":[1]'


@pytest.mark.parametrize(
    ("closing", "text"),
    [
        (CLOSING, "\n</think>\n\n7"),
        (CLOSING_ON_NEWLINE, "</think>\n\n7"),
        ((START, *CLOSING), "<think>\n</think>\n\n7"),
        (
            (*CLOSING_ON_NEWLINE, START, *CLOSING),
            "</think>\n\n<think>\n</think>\n\n7",
        ),
    ],
)
def test_the_closing_sequence_is_text_too(closing: tuple[int, ...], text: str) -> None:
    """A client reads it before the answer, as it would read the model's own marker."""
    made = surface(return_token_ids=True)
    told = event("7", [30])
    chunk = made.decode(told[6:-2])
    closed = made.prepend_closing(told, chunk.choices[0], closing)
    choice = json.loads(closed[6:])["choices"][0]
    assert (choice["text"], choice["token_ids"]) == (text, [*closing, 30])


def test_offsets_go_on_over_a_cut() -> None:
    """Log-probabilities of the answer count from the beginning of the whole text."""
    made = surface(logprobs=1)
    shown(made, event("abc", [7]))
    logprobs = {"tokens": ["7"], "token_logprobs": [-1.0], "top_logprobs": [{}], "text_offset": [0]}
    for number, offset in enumerate((3 + 11, 3 + 11)):
        told = event("7", [30], logprobs=logprobs)
        chunk = made.decode(told[6:-2])
        if number == 0:
            told = made.prepend_closing(told, chunk.choices[0], CLOSING)
        came = made.render_event(told, chunk)
        assert came is not None
        choice = json.loads(came[6:])["choices"][0]
        assert choice["logprobs"]["text_offset"] == [offset]


def test_the_edge_ends_at_the_marker() -> None:
    """What stands behind it is the answer's, which is drawn anew."""
    edge = surface().trim_to_trace(event("a</think>b", [7, END, 8], finish_reason="stop"), 2)
    assert edge is not None
    choice = json.loads(edge[6:])["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("a</think>", [7, END])
    assert choice["finish_reason"] is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"prompt": "a<think>\n"}, None),
        ({"prompt": ["a"]}, None),
        ({"prompt": [[5, START]]}, None),
        ({"prompt": ["a", "b"]}, "several-prompts"),
        ({"prompt": [[5], [START]]}, "several-prompts"),
        ({"prompt": None, "prompt_embeds": "x"}, "not-text"),
        ({"echo": True}, "echo"),
        ({"prompt_logprobs": 1}, "prompt-logprobs"),
        ({"use_beam_search": True}, "beam-search"),
        ({"n": 2}, None),
    ],
)
def test_untouchable(fields: dict[str, Any], expected: str | None) -> None:
    """What cannot be cut safely is handed through, by name."""
    body = json.dumps({"model": "m", "prompt": [5], **fields}).encode()
    assert parse_completion(body, {}, Settings(), None, {"m": None}).ineligible_reason == expected


def test_a_prompt_that_is_alone_in_a_list_is_one() -> None:
    """Whether it opens a trace is read off it; the engine gets it as it was written."""
    body = b'{"model": "m", "prompt": [[5, %d]], "stop": "x"}' % START
    asked = parse_completion(body, {}, Settings(), None, {"m": None})
    assert can_separate_stops(asked.prompt, DIALECT)
    assert bytes(asked.fields["prompt"]) == b"[[5, %d]]" % START


@pytest.mark.parametrize("streamed", [True, False])
def test_an_unstopped_completion_is_the_engines(adjourn: str, standin: str, streamed: bool) -> None:
    """Streamed and whole, but for id and time."""
    asked = {"model": "standin", "prompt": [5, 6, 1, 7], "max_tokens": 3, "logprobs": 1}
    asked["stream"] = streamed
    replies = [httpx.post(url + PATH, json=asked) for url in (standin, adjourn)]
    if not streamed:
        direct, ours = (reply.json() for reply in replies)
        assert list(direct) == list(ours)
        assert direct["choices"] == ours["choices"]
        assert direct["usage"] == ours["usage"]
    assert replies[1].headers["x-adjourn-policy"] == "deer"
    assert metric_value(adjourn, "adjourn_requests_total", endpoint=PATH, policy="deer") > 0


# -- what a policy wants of the main stream ----------------------------------------------------


def wanting(number: int = 3, bias: float = 0.0, **fields: Any) -> CompletionsEndpoint:
    body = json.dumps({"model": "m", "prompt": list(PROMPT), **fields}).encode()
    asked = parse_completion(body, {}, Settings(), None, {"m": None})
    return CompletionsEndpoint(asked, 0, PolicyExtras(number, bias, END), dialect=DIALECT)


DRAWN = {
    "tokens": ["b"],
    "token_logprobs": [-2.5],
    "top_logprobs": [{"b": -2.5, "a": -0.1, "c": -2.0, "d": -2.0}],
    "text_offset": [0],
}


@pytest.mark.parametrize(("asked", "number"), [(None, 3), (1, 3), (5, 5)])
def test_log_probabilities_are_asked_for(asked: int | None, number: int) -> None:
    """As many as the policy or the client wants, on the main stream; the answer's are the
    client's."""
    made = wanting(**({} if asked is None else {"logprobs": asked}))
    assert bytes(made.main_fields["logprobs"]) == b"%d" % number
    answer = made.answer_fields([1], None).get("logprobs")
    assert answer is None if asked is None else answer is not None and int(bytes(answer)) == asked


@pytest.mark.parametrize(
    ("asked", "shown_of"), [(None, None), (0, ["b"]), (1, ["b", "a"]), (2, ["b", "a", "c"])]
)
def test_a_client_gets_its_own(asked: int | None, shown_of: list[str] | None) -> None:
    """The drawn token's and those of as many as it asked for; the policy is told all."""
    made = wanting(**({} if asked is None else {"logprobs": asked}))
    came = event("b", [7], logprobs=DRAWN)
    chunk = made.decode(came[6:-2])
    assert made.logprobs_of(chunk.choices[0]) == [[-0.1, -2.0, -2.0, -2.5]]
    logprobs = shown(made, came)["logprobs"]
    assert (logprobs and list(logprobs["top_logprobs"][0])) == shown_of


def test_a_bias_is_the_main_streams() -> None:
    """It is added to the client's; another one may be wanted later; the answer has none of it."""
    made = wanting(0, 1.5, logit_bias={"7": 1})
    assert json.loads(bytes(made.main_fields["logit_bias"])) == {"7": 1.0, str(END): 1.5}
    more = made.continuation_fields([1, 2], 5, 2.5)
    assert json.loads(bytes(more["logit_bias"])) == {"7": 1.0, str(END): 2.5}
    assert [json.loads(bytes(more[key])) for key in ("prompt", "max_tokens")] == [[1, 2], 5]
    assert json.loads(bytes(made.answer_fields([1], None)["logit_bias"])) == {"7": 1}


def test_what_is_put_in_is_text() -> None:
    """A chunk like the engine's, with the ids where the client asked for them."""
    made = surface(return_token_ids=True)
    came = made.render_inserted_text(
        Chunk(id="cmpl-1", created=5), InsertedText("\nWait", (22, 23))
    )
    assert json.loads(came[6:]).keys() == json.loads(event("", [])[6:]).keys()
    choice = shown(made, came)
    assert (choice["text"], choice["token_ids"]) == ("\nWait", [22, 23])
    assert choice.keys() == json.loads(event("", [])[6:])["choices"][0].keys()


@pytest.mark.parametrize(
    ("prompt", "ends", "apart"),
    [
        (None, (END,), True),
        ("a<think>\n", (END,), True),
        ("a<think></think>", (END,), False),
        ([5, START], (END,), True),
        ([5, START, END], (END,), False),
        ([5, START], (END, 8), False),
        (None, (END, 8), True),
    ],
)
def test_stop_strings_that_can_wait(prompt: Any, ends: tuple[int, ...], apart: bool) -> None:
    """A raw prompt must end in a trace, and the marker that ends it be one token."""
    marks = replace(
        DIALECT, matcher=MarkerMatcher({(START,): MarkerKind.START, ends: MarkerKind.END})
    )
    assert can_separate_stops(prompt, marks) is apart
